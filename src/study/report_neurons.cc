#include "study/report_neurons.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

namespace polar::study {

namespace {

constexpr double kWidth = 720, kHeight = 300, kLeft = 64, kTop = 12, kRight = 84, kBottom = 48;

double x_of(int layer, int layers) {
  const double room = kWidth - kLeft - kRight;
  return kLeft + (layers > 1 ? room * layer / (layers - 1) : room / 2);
}

double y_of(double share) {
  return kHeight - kBottom - share * (kHeight - kTop - kBottom);
}

/// Darker: a larger batch.
std::string color_of(size_t size, size_t sizes) {
  const double part = sizes > 1 ? 100.0 * static_cast<double>(size) / (sizes - 1.0) : 100;
  return fmt::format("color-mix(in srgb,var(--full) {:.0f}%,var(--low))", part);
}

/// Names the lines at their right ends, those that end close together one below the other.
std::string line_names(const std::vector<int32_t>& batches, const std::vector<double>& ends) {
  constexpr double kApart = 13;
  std::string svg;
  double above = -1;
  for (size_t i = batches.size(); i-- > 0;) {  // the largest batch stands highest
    const double y = std::max(y_of(ends[i]) + 4, above + kApart);
    above = y;
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\">batch {}</text>", kWidth - kRight + 8, y,
                       batches[i]);
  }
  return svg;
}

std::string chart(const sparsity::Routers& routers, double recall) {
  std::string svg = fmt::format(
      "<div class=\"wide\"><svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"Neurons computed by layer and batch size\">",
      kWidth, kHeight);
  for (int percent = 0; percent <= 100; percent += 25) {
    const double y = y_of(percent / 100.0);
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5} %</text>",
        kLeft, kWidth - kRight, y, kLeft - 6, y + 4, percent);
  }
  const auto layers = static_cast<int>(routers.mlps.size());
  const int named = layers > 16 ? 4 : 1;  // every how many layers
  for (int layer = 0; layer < layers; layer += named) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                       x_of(layer, layers), kHeight - kBottom + 18, layer);
  }
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">layer</text>",
                     (kLeft + kWidth - kRight) / 2, kHeight - 8);
  std::vector<double> ends;
  for (size_t size = 0; size < routers.batches.size(); ++size) {
    const int batch = routers.batches[size];
    std::string path, marks;
    for (int layer = 0; layer < layers; ++layer) {
      const double share =
          static_cast<double>(sparsity::neurons_for(routers, layer, batch, recall)) / routers.ffn;
      const double x = x_of(layer, layers), y = y_of(share);
      path += fmt::format("{}{:.1f},{:.1f} ", path.empty() ? "M" : "L", x, y);
      marks += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"><title>layer {}, batch {}: {:.1f} % of the "
          "neurons</title></circle>",
          x, y, layer, batch, share * 100);
      if (layer + 1 == layers) ends.push_back(share);
    }
    svg += fmt::format("<g class=\"line\" style=\"--line:{}\"><path d=\"{}\"/>{}</g>",
                       color_of(size, routers.batches.size()), path, marks);
  }
  return svg + line_names(routers.batches, ends) + "</svg></div>";
}

}  // namespace

std::string neuron_charts(const sparsity::Profile& profile) {
  if (profile.routers == nullptr || !profile.routers->routes_neurons()) return "";
  std::map<double, std::string> names;  // of the points, by recall
  for (const sparsity::OperatingPoint& point : profile.points) {
    if (point.recall == 0) continue;
    std::string& name = names[point.recall];
    name += (name.empty() ? "" : ", ") + point.name;
  }
  std::string html;
  for (const auto& [recall, name] : names) {
    html += fmt::format("<p>Point {}: {:.4g} % of the truly active neurons.</p>{}", name,
                        recall * 100, chart(*profile.routers, recall));
  }
  if (html.empty()) return html;
  return "<h2>Neurons computed</h2><p>Share of each layer's neurons that a step of so many rows "
         "computes.</p>" +
         html;
}

}  // namespace polar::study
