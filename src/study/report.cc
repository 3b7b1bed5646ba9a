#include "study/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "study/report_neurons.h"
#include "study/report_style.h"

namespace polar::study {

using nlohmann::ordered_json;

namespace {

std::string escape(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    const char* entity = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : nullptr;
    if (c == '"') entity = "&quot;";
    safe += entity != nullptr ? std::string(entity) : std::string(1, c);
  }
  return safe;
}

/// The lines of the chart in their order: name and points by bytes.
struct Line {
  std::string name;
  std::vector<CurvePoint> points;
};

constexpr const char* kSearched = "tried by the search";
constexpr const char* kChosen = "chosen";

std::vector<CurvePoint> all_points(const Calibration& calibration) {
  std::vector<CurvePoint> points = calibration.curve;
  for (const Trial& trial : calibration.trials)
    points.push_back({kSearched, trial.point.name, trial.loss, trial.effective_density,
                      trial.needles, trial.answer_loss});
  for (const auto& point : calibration.profile.points) {
    const sparsity::Quality& quality = point.quality;
    if (quality.perplexity_ratio <= 0) continue;
    points.push_back({kChosen, point.name, quality.perplexity_ratio - 1, quality.effective_density,
                      quality.sparse_needles, 0});
  }
  return points;
}

std::vector<Line> lines_of(const Calibration& calibration) {
  std::vector<Line> lines;
  for (const CurvePoint& point : all_points(calibration)) {
    auto line = std::find_if(lines.begin(), lines.end(),
                             [&](const Line& other) { return other.name == point.policy; });
    if (line == lines.end()) line = lines.insert(lines.end(), {point.policy, {}});
    line->points.push_back(point);
  }
  for (Line& line : lines) {
    std::stable_sort(line.points.begin(), line.points.end(), [](const auto& a, const auto& b) {
      return a.effective_density < b.effective_density;
    });
  }
  return lines;
}

/// A chart of 720 x 400 with KV bytes to the right. `place`: height of a value in [0, 1].
struct Chart {
  static constexpr double kWidth = 720, kHeight = 400, kLeft = 64, kTop = 12, kRight = 28,
                          kBottom = 48;
  std::string svg;

  explicit Chart(const std::string& label) {
    svg = fmt::format(
        "<div class=\"wide\"><svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" "
        "aria-label=\"{}\">",
        kWidth, kHeight, label);
    for (int percent = 0; percent <= 100; percent += 20) {
      const double at = x(percent / 100.0);
      svg += fmt::format(
          "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>"
          "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4} %</text>",
          at, kTop, kHeight - kBottom, kHeight - kBottom + 18, percent);
    }
    svg += fmt::format(
        "<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">KV bytes read, of "
        "dense</text>",
        x(0.5), kHeight - 8);
  }

  static double x(double density) {
    return kLeft + std::clamp(density, 0.0, 1.0) * (kWidth - kLeft - kRight);
  }
  static double y(double place) {
    return kHeight - kBottom - std::clamp(place, 0.0, 1.0) * (kHeight - kTop - kBottom);
  }

  void tick(double place, const std::string& text) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
        kLeft, kWidth - kRight, y(place), y(place), kLeft - 6, y(place) + 4, text);
  }

  /// The search's tries are dots alone, the chosen points are larger and named.
  template <typename Place>
  void add(const Line& line, size_t color, const Place& place) {
    const bool joined = line.name != kSearched && line.name != kChosen;
    const bool chosen = line.name == kChosen;
    std::string path, marks;
    for (const CurvePoint& point : line.points) {
      const double px = x(point.effective_density), py = y(place(point));
      path += fmt::format("{}{:.1f},{:.1f} ", path.empty() ? "M" : "L", px, py);
      marks += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"><title>{}, {}: loss {:.2f} %, {:.1f} % of "
          "the bytes, {} answered</title></circle>",
          px, py,
          chosen   ? 7
          : joined ? 3.5
                   : 2,
          escape(point.policy), escape(point.setting), point.loss * 100,
          point.effective_density * 100, point.needles);
      if (chosen)
        marks += fmt::format("<text class=\"name\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", px + 10,
                             py - 8, escape(point.setting));
    }
    svg += fmt::format("<g class=\"{}\" style=\"--line:var(--c{})\">",
                       chosen   ? "chosen"
                       : joined ? "line"
                                : "tried",
                       color);
    if (joined) svg += "<path d=\"" + path + "\"/>";
    svg += marks + "</g>";
  }

  std::string finish() const { return svg + "</svg></div>"; }
};

/// Losses from 0.1 % (and all below) to 1,000 % (and all above) on a logarithmic scale.
double place_of_loss(const CurvePoint& point) {
  return point.loss <= 1e-3 ? 0 : std::log10(point.loss * 1e3) / 4;
}

std::string loss_chart(const std::vector<Line>& lines) {
  Chart chart("Loss against KV bytes read");
  const char* const ticks[] = {"0.1 %", "1 %", "10 %", "100 %", "1000 %"};
  for (int i = 0; i < 5; ++i) chart.tick(i / 4.0, ticks[i]);
  for (size_t i = 0; i < lines.size(); ++i) chart.add(lines[i], i, place_of_loss);
  return chart.finish();
}

std::string retrieval_chart(const std::vector<Line>& lines, int needles) {
  Chart chart("Retrieval prompts answered against KV bytes read");
  const int step = std::max(1, needles / 4);
  for (int count = 0; count <= needles; count += step)
    chart.tick(static_cast<double>(count) / needles, std::to_string(count));
  for (size_t i = 0; i < lines.size(); ++i) {
    chart.add(lines[i], i, [&](const CurvePoint& point) {
      return static_cast<double>(point.needles) / needles;
    });
  }
  return chart.finish();
}

std::string legend(const std::vector<Line>& lines) {
  std::string html = "<ul class=\"legend\">";
  for (size_t i = 0; i < lines.size(); ++i)
    html +=
        fmt::format("<li><i style=\"background:var(--c{})\"></i>{}</li>", i, escape(lines[i].name));
  return html + "</ul>";
}

/// How much of a unit's context its budget reads, as a class for the map: none, window, pages (by
/// quarters), routed, full.
std::string budget_class(const backend::UnitBudget& budget) {
  if (budget.kind != backend::ReadKind::kPages) return sparsity::kind_name(budget.kind);
  return "p" + std::to_string(std::min(3, budget.pages_per_mille / 250));
}

/// Layers down, KV heads across; a cell says its budget and what leaving the unit out costs.
std::string unit_map(const sparsity::OperatingPoint& point, const Calibration& calibration) {
  const sparsity::Profile& profile = calibration.profile;
  constexpr int kCell = 14, kLabel = 26;
  std::string svg = fmt::format(
      "<svg class=\"map\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\" "
      "aria-label=\"Budget of each unit at {2}\">",
      kLabel + profile.kv_heads * kCell, profile.layers * kCell, escape(point.name));
  for (int layer = 0; layer < profile.layers; ++layer) {
    if (layer % 5 == 0)
      svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", kLabel - 5,
                         layer * kCell + 11, layer);
    for (int head = 0; head < profile.kv_heads; ++head) {
      const size_t unit = static_cast<size_t>(layer) * profile.kv_heads + head;
      const backend::UnitBudget& budget = point.budgets[unit];
      std::string what = sparsity::kind_name(budget.kind);
      if (budget.kind == backend::ReadKind::kPages)
        what = fmt::format("{:.1f} % of the pages", budget.pages_per_mille / 10.0);
      if (budget.least > 0) what += fmt::format(", at least {}", budget.least);
      if (budget.summaries) what += ", summaries of the others";
      std::string worth;
      if (!profile.text_importance.empty())
        worth += fmt::format(", text {:.2g}", profile.text_importance[unit]);
      if (!profile.retrieval_importance.empty())
        worth += fmt::format(", retrieval {:.2g}", profile.retrieval_importance[unit]);
      if (!worth.empty()) worth = "; left out alone (KL, nats)" + worth.substr(1);
      svg += fmt::format(
          "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" "
          "rx=\"2\"><title>layer {}, KV head {}: {}{}</title></rect>",
          budget_class(budget), kLabel + head * kCell, layer * kCell, kCell - 2, kCell - 2, layer,
          head, what, worth);
    }
  }
  return svg + "</svg>";
}

std::string maps(const Calibration& calibration) {
  std::string html = "<div class=\"maps\">";
  for (const auto& point : calibration.profile.points) {
    if (point.quality.perplexity_ratio <= 0) continue;
    html += "<figure>" + unit_map(point, calibration) + "<figcaption>" + escape(point.name) +
            "</figcaption></figure>";
  }
  return html + "</div>";
}

std::string points_table(const Calibration& calibration) {
  std::string html =
      "<div class=\"wide\"><table><tr><th>point</th><th>loss</th><th>at most</th><th>KV bytes</th>"
      "<th>KL</th><th>agreement</th><th>retrieval</th></tr>";
  for (const auto& point : calibration.profile.points) {
    const sparsity::Quality& q = point.quality;
    if (q.perplexity_ratio <= 0) continue;
    html += fmt::format(
        "<tr><td>{}</td><td>{:.2f} %</td><td>{}</td><td>{:.1f} %</td><td>{:.4f}</td>"
        "<td>{:.1f} %</td><td>{} of {} (dense {})</td></tr>",
        escape(point.name), (q.perplexity_ratio - 1) * 100,
        q.max_loss > 0 ? fmt::format("{:.2f} %", q.max_loss * 100) : "", q.effective_density * 100,
        q.kl, q.agreement * 100, q.sparse_needles, q.needles, q.dense_needles);
  }
  return html + "</table></div>";
}

std::string numbers_table(const std::vector<Line>& lines) {
  std::string html =
      "<div class=\"wide\"><table><tr><th>policy</th><th>setting</th><th>loss</th>"
      "<th>KV bytes</th><th>answered</th></tr>";
  for (const Line& line : lines) {
    for (const CurvePoint& point : line.points) {
      html += fmt::format(
          "<tr><td>{}</td><td>{}</td><td>{:.2f} %</td><td>{:.1f} %</td><td>{}</td></tr>",
          escape(point.policy), escape(point.setting), point.loss * 100,
          point.effective_density * 100, point.needles);
    }
  }
  return html + "</table></div>";
}

std::string comparison_table(const Calibration& calibration) {
  std::string html =
      "<div class=\"wide\"><table><tr><th>at the bytes of</th><th>policy</th><th>setting</th>"
      "<th>loss</th><th>KV bytes</th><th>answers lose</th></tr>";
  for (const Comparison& comparison : calibration.comparisons) {
    for (const Trial& trial : comparison.policies) {
      html += fmt::format(
          "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2f} %</td><td>{:.1f} %</td>"
          "<td>{:.3f} nats</td></tr>",
          escape(comparison.point), trial.policy, escape(trial.point.name), trial.loss * 100,
          trial.effective_density * 100, trial.answer_loss);
    }
  }
  return html + "</table></div>";
}

/// The text that the numbers were measured on, as the points say it.
std::string measured_on(const Calibration& calibration) {
  for (const auto& point : calibration.profile.points) {
    if (!point.quality.text.empty()) return point.quality.text;
  }
  return "";
}

}  // namespace

ordered_json curve_rows(const Calibration& calibration) {
  ordered_json rows = ordered_json::array();
  for (const CurvePoint& point : all_points(calibration)) {
    rows.push_back({{"policy", point.policy},
                    {"setting", point.setting},
                    {"loss", point.loss},
                    {"effective_density", point.effective_density},
                    {"needles", point.needles}});
  }
  return rows;
}

ordered_json comparison_rows(const Calibration& calibration) {
  ordered_json rows = ordered_json::array();
  for (const Comparison& comparison : calibration.comparisons) {
    for (const Trial& trial : comparison.policies) {
      rows.push_back({{"point", comparison.point},
                      {"policy", trial.policy},
                      {"setting", trial.point.name},
                      {"loss", trial.loss},
                      {"effective_density", trial.effective_density},
                      {"needles", trial.needles},
                      {"answer_loss", trial.answer_loss}});
    }
  }
  return rows;
}

std::string report_html(const Calibration& calibration, const std::string& model) {
  const std::vector<Line> lines = lines_of(calibration);
  const sparsity::Profile& profile = calibration.profile;
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<title>{0}: quality against bytes</title><style>{1}</style></head><body>"
      "<h1>{0}: quality against bytes</h1><p>{2}; contexts of {3} to {4} tokens. Dense perplexity "
      "{5:.4g}. {6} retrieval prompts, {7} of them answered dense.</p>",
      escape(model), kReportStyle, escape(measured_on(calibration)), profile.context_min,
      profile.context_max, calibration.dense_perplexity, calibration.needle_count,
      calibration.dense_needles);
  html += "<h2>Chosen points</h2>" + points_table(calibration);
  if (!calibration.comparisons.empty()) {
    html +=
        "<h2>Policies at equal bytes</h2><p>Of each policy the best that the search found at "
        "the bytes of a chosen point.</p>" +
        comparison_table(calibration);
  }
  html +=
      "<h2>Loss of perplexity</h2><p>Lower and further left is better. Losses below 0.1 % stand "
      "on the lowest line, those above 1,000 % on the highest.</p>" +
      loss_chart(lines) + legend(lines);
  if (calibration.needle_count > 0) {
    html += "<h2>Retrieval prompts answered</h2>" +
            retrieval_chart(lines, calibration.needle_count) + legend(lines);
  }
  html += fmt::format("<h2>What each unit reads</h2><p>Layers down, KV heads across.</p>{}{}",
                      maps(calibration), kMapLegend);
  html += neuron_charts(profile);
  html += "<h2>All numbers</h2>" + numbers_table(lines);
  return html + "</body></html>\n";
}

}  // namespace polar::study
