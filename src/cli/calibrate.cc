#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <span>

#include "cli/open_device.h"
#include "cli/read_file.h"
#include "cli/table.h"
#include "engine/load_tokenizer.h"
#include "io/atomic_file.h"
#include "model/routed_neurons.h"
#include "study/neuron_recall.h"
#include "study/report.h"
#include "study/router_training.h"

namespace polar::cli {

namespace {

struct CalibrateFlags {
  ModelFlags model;
  std::string text;
  std::string max_loss = "1%", max_bytes;
  std::string page_score = "codes";
  std::string out;
  study::CalibrateOptions options;
  std::string policy = "auto";
  bool routers = false;
  bool curve = false;
  int curve_settings = 5;
  int router_windows = 40;
  bool all_neurons = false;
  study::RouterOptions router;
  Format format = Format::kMarkdown;
};

/// "1%,3%" or "0.01,0.03" as shares.
Result<std::vector<double>> parse_shares(const std::string& flag, const std::string& text) {
  std::vector<double> shares;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, comma - begin);
    char* end = nullptr;
    const double value = std::strtod(part.c_str(), &end);
    const bool percent = *end == '%';
    const double share = percent ? value / 100 : value;
    if (end == part.c_str() || *(end + (percent ? 1 : 0)) != '\0' || !(share > 0 && share < 1)) {
      return bad_input("command line", flag, "'" + part + "'",
                       "shares such as 1% or 0.03, more than 0 and less than 1");
    }
    shares.push_back(share);
    begin = comma + 1;
  }
  return shares;
}

/// Trains routers alone and writes them into the folder, beside whatever profile is there.
Result<int> train(CalibrateFlags& flags, backend::Device& device, const model::ModelFile& file,
                  const model::Weights& weights, const study::Windows& windows) {
  POLAR_ASSIGN(const study::TrainedRouters trained,
               study::train_routers(device, file, weights, windows, flags.router));
  if (flags.router.progress) fmt::print(stderr, "\r\033[K");
  POLAR_RETURN_IF_ERROR(sparsity::write_routers(flags.out, trained.routers));
  if (!std::filesystem::exists(std::filesystem::path(flags.out) / "profile.json")) {
    sparsity::Profile profile =
        sparsity::dense_profile(file.config().layers, file.config().kv_heads);
    profile.fingerprint = file.fingerprint();
    POLAR_RETURN_IF_ERROR(sparsity::write_profile(flags.out, profile));
  }
  Rows rows;
  for (size_t i = 0; i < trained.computed_share.size(); ++i) {
    const size_t size = i % trained.union_share.size();
    rows.push_back({{"recall", trained.routers.recalls[i / trained.union_share.size()]},
                    {"batch", trained.routers.batches[size]},
                    {"union_share", trained.union_share[size]},
                    {"neuron_share", trained.computed_share[i]}});
  }
  fmt::print("{}", print_rows(rows, flags.format, 4));
  fmt::print(stderr, "wrote {}/routers.safetensors\n", flags.out);
  return kOk;
}

bool holds_routers(const std::string& folder) {
  return std::filesystem::exists(std::filesystem::path(folder) / "routers.safetensors");
}

/// The folder's routers of neurons, or new ones, put beside the head routers that may stand there.
Result<sparsity::Routers> neuron_routers(const CalibrateFlags& flags, backend::Device& device,
                                         const model::ModelFile& file,
                                         const model::Weights& weights,
                                         const study::Windows& windows) {
  const model::ModelConfig& config = file.config();
  sparsity::Routers stored;
  if (holds_routers(flags.out)) {
    POLAR_ASSIGN(stored, sparsity::read_routers(flags.out, config.layers, config.hidden,
                                                config.kv_heads, config.ffn));
    if (stored.routes_neurons()) {
      model::copy_up_projections(file, stored);
      return stored;
    }
  }
  POLAR_ASSIGN(study::NeuronRecall measured,
               study::measure_neuron_recall(device, file, weights, windows, flags.router));
  if (stored.routes_heads()) measured.routers.heads = std::move(stored.heads);
  POLAR_RETURN_IF_ERROR(sparsity::write_routers(flags.out, measured.routers));
  return std::move(measured.routers);
}

/// Which settings the curve has. Routers that an earlier run left in the folder take part.
Status prepare_curve(CalibrateFlags& flags, backend::Device& device, const model::ModelFile& file) {
  const model::ModelConfig& config = file.config();
  std::shared_ptr<const sparsity::Routers> routers;
  if (holds_routers(flags.out)) {
    POLAR_ASSIGN(auto read, sparsity::read_routers(flags.out, config.layers, config.hidden,
                                                   config.kv_heads, config.ffn));
    routers = std::make_shared<const sparsity::Routers>(std::move(read));
  }
  flags.options.curve =
      study::curve_settings(config, std::move(routers), flags.options.seed, flags.curve_settings);
  flags.options.curve_planner = [&](const study::Policy& policy, const std::vector<int>& ranked) {
    return study::make_planner(policy, device, file, ranked);
  };
  return {};
}

/// A folder's head routers, or null.
Result<std::shared_ptr<const sparsity::Routers>> stored_heads(const std::string& folder,
                                                              const model::ModelConfig& config) {
  std::shared_ptr<const sparsity::Routers> heads;
  if (!holds_routers(folder)) return heads;
  POLAR_ASSIGN(auto stored, sparsity::read_routers(folder, config.layers, config.hidden,
                                                   config.kv_heads, config.ffn));
  if (stored.routes_heads()) heads = std::make_shared<const sparsity::Routers>(std::move(stored));
  return heads;
}

/// Routers for routed and hybrid candidates: those that lie in the folder, a researcher's own or of
/// a run with --routers; else ones trained for what candidates read, kept in DIR/candidates so that
/// a run that goes on has the same.
Status prepare_candidates(CalibrateFlags& flags, backend::Device& device,
                          const model::ModelFile& file, const model::Weights& weights,
                          const study::Windows& windows) {
  const model::ModelConfig& config = file.config();
  const std::string candidates = (std::filesystem::path(flags.out) / "candidates").string();
  POLAR_ASSIGN(flags.options.routers, stored_heads(flags.out, config));
  if (flags.options.routers != nullptr) return {};
  if (!holds_routers(candidates)) {
    study::RouterOptions options = flags.router;
    options.density = std::max(1, config.kv_heads / 2) / static_cast<double>(config.kv_heads);
    options.rank_by = study::RankBy::kContribution;
    options.fallback = study::Fallback::kWindow;
    options.dense_layers.clear();
    options.rounds = 1;  // above a window, states stay near dense ones
    options.neurons = false;
    POLAR_ASSIGN(const study::TrainedRouters trained,
                 study::train_routers(device, file, weights, windows, options));
    POLAR_RETURN_IF_ERROR(sparsity::write_routers(candidates, trained.routers));
  }
  POLAR_ASSIGN(flags.options.routers, stored_heads(candidates, config));
  return {};
}

Status write_text(const std::filesystem::path& path, const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  if (!io::write_file_atomically(path.string(), {&bytes, 1}).ok())
    return bad_input(path.string(), "file", "a folder that cannot be written", "a writable folder");
  fmt::print(stderr, "wrote {}\n", path.string());
  return {};
}

/// DIR/curve.json, DIR/curve.csv and DIR/report.html.
Status write_curve(const CalibrateFlags& flags, const study::Calibration& calibration) {
  const std::filesystem::path out(flags.out);
  const nlohmann::ordered_json points = study::curve_rows(calibration);
  const nlohmann::ordered_json json = {{"dense_perplexity", calibration.dense_perplexity},
                                       {"needles", calibration.needle_count},
                                       {"dense_needles", calibration.dense_needles},
                                       {"equal_bytes", study::comparison_rows(calibration)},
                                       {"points", points}};
  POLAR_RETURN_IF_ERROR(write_text(out / "curve.json", json.dump(1) + "\n"));
  const Rows rows(points.begin(), points.end());
  POLAR_RETURN_IF_ERROR(write_text(out / "curve.csv", print_rows(rows, Format::kCsv)));
  const std::string model = std::filesystem::path(flags.model.model).filename().string();
  return write_text(out / "report.html", study::report_html(calibration, model));
}

Result<int> calibrate(CalibrateFlags& flags) {
  POLAR_ASSIGN(flags.options.max_losses, parse_shares("--max-loss", flags.max_loss));
  if (!flags.max_bytes.empty()) {
    POLAR_ASSIGN(flags.options.max_bytes, parse_shares("--max-bytes", flags.max_bytes));
  }
  POLAR_ASSIGN(const std::string text, read_file(flags.text));
  POLAR_ASSIGN(const auto file, model::ModelFile::open(flags.model.model));
  if (flags.options.context > file.config().max_positions) {
    return bad_input(
        "command line", "--context", std::to_string(flags.options.context),
        fmt::format("at most {}, the model's longest context", file.config().max_positions));
  }
  POLAR_ASSIGN(const text::Tokenizer tokenizer, engine::load_tokenizer(file));
  POLAR_ASSIGN(auto device, open_device(flags.model));
  POLAR_ASSIGN(const model::Weights weights, model::load_weights(*device, file));
  flags.options.kv_dtype = kv_dtype(flags.model, *device);
  flags.options.page_score =
      flags.page_score == "mean" ? backend::PageScore::kMean : backend::PageScore::kCodes;
  flags.options.text_name = std::filesystem::path(flags.text).filename().string();
  if (isatty(STDERR_FILENO)) {
    flags.options.progress = [](const std::string& stage, int done, int of) {
      fmt::print(stderr, "\r\033[K{}: {} of {}", stage, done, of);
    };
  }
  const auto encode = [&](const std::string& document, bool special) {
    return tokenizer.encode(document, special);
  };
  flags.router.kv_dtype = flags.options.kv_dtype;
  flags.router.seed = flags.options.seed;
  flags.router.progress = flags.options.progress;
  const auto router_windows = [&](int count) {
    return study::make_windows(
        flags.text, study::split_documents(text),
        [&](const std::string& document) { return encode(document, true); },
        std::min(flags.options.context, 1024), count);
  };
  if (flags.routers) {
    POLAR_ASSIGN(const study::Windows windows, router_windows(flags.router_windows));
    return train(flags, *device, file, weights, windows);
  }
  if (study::has_routable_neurons(file.config()) && !flags.all_neurons) {
    flags.options.neurons = [&](const study::Windows& windows) {
      return neuron_routers(flags, *device, file, weights, windows);
    };
  }
  if (flags.policy == "routed") flags.options.policies = {"routed", "hybrid"};
  bool few_windows = false;
  if (flags.policy != "static" && file.config().kv_heads > 1) {
    // A linear router per layer needs no more, and they are candidates among others.
    POLAR_ASSIGN(const study::Windows windows,
                 router_windows(std::max(study::kRouterWindows, flags.router_windows / 2)));
    few_windows = windows.count < study::kRouterWindows;
    if (!few_windows)
      POLAR_RETURN_IF_ERROR(prepare_candidates(flags, *device, file, weights, windows));
  }
  flags.options.compare = flags.curve;
  if (flags.curve) POLAR_RETURN_IF_ERROR(prepare_curve(flags, *device, file));
  POLAR_ASSIGN(
      const study::Calibration calibration,
      study::calibrate(*device, weights, file.fingerprint(), study::split_documents(text), encode,
                       tokenizer.leading_token().value_or(-1), flags.out, flags.options));
  if (flags.options.progress) fmt::print(stderr, "\r\033[K");
  Rows rows;
  for (const auto& point : calibration.profile.points) {
    rows.push_back({{"point", point.name},
                    {"max_loss", point.quality.max_loss},
                    {"measured_loss",
                     point.quality.perplexity_ratio > 0 ? point.quality.perplexity_ratio - 1 : 0.0},
                    {"effective_density", point.quality.effective_density},
                    {"recall", point.recall},
                    {"neuron_share", point.quality.neuron_share}});
  }
  fmt::print("{}", print_rows(rows, flags.format));
  if (few_windows)
    fmt::print(stderr, "{}: too short to train routers: no routed candidates\n", flags.text);
  fmt::print(stderr, "wrote {}/profile.json\n", flags.out);
  POLAR_RETURN_IF_ERROR(write_curve(flags, calibration));
  return kOk;
}

}  // namespace

void add_calibrate(CLI::App& app, Run& run) {
  auto* command = app.add_subcommand(
      "calibrate", "Find what may be skipped within a stated loss; write a profile");
  auto flags = std::make_shared<CalibrateFlags>();
  study::CalibrateOptions& options = flags->options;
  add_model_flags(*command, flags->model);
  command
      ->add_option("--text", flags->text,
                   "Documents, separated by lines that hold only the byte 0x1E")
      ->required();
  command
      ->add_option("--max-loss", flags->max_loss,
                   "Loss of perplexity to stay inside, e.g. 1% or 1%,3%")
      ->capture_default_str();
  command->add_option("--max-bytes", flags->max_bytes,
                      "Beside these, points of the least loss within shares of the KV bytes, e.g. "
                      "30% or 30%,18%");
  command
      ->add_option("--out", flags->out,
                   "Folder of the profile; a run that was stopped goes on there")
      ->required();
  command->add_option("--context", options.context, "Tokens per window")
      ->check(CLI::Range(64, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--prompt", options.prompt,
                   "Tokens of a window that are prefilled dense (default: a quarter)")
      ->check(CLI::Range(0, 1 << 24));
  command
      ->add_option("--importance-windows", options.importance_windows,
                   "Windows in whose last quarters units are left out one by one")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--held-out-windows", options.held_out_windows, "Windows that decide")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("--needles", options.needles,
                   "Retrieval prompts: a third ranks the units, the others decide")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("--page-score", flags->page_score,
                   "How pages are scored: codes (two bits per key channel) or mean (mean keys)")
      ->check(CLI::IsMember({"mean", "codes"}))
      ->capture_default_str();
  command
      ->add_option("--policy", flags->policy,
                   "Candidates: static (fixed budgets and pages), routed (heads by a router, alone "
                   "or beside fixed ones) or auto (all)")
      ->check(CLI::IsMember({"auto", "static", "routed"}))
      ->capture_default_str();
  command
      ->add_option(
          "--trials", options.trials,
          "Assignments measured at most for each loss, on all held-out windows or, four for "
          "one, on a quarter of them")
      ->check(CLI::Range(4, 1000))
      ->capture_default_str();
  command->add_option("--seed", options.seed, "Seed of the retrieval prompts")
      ->capture_default_str();
  command->add_flag(
      "--curve", flags->curve,
      "Measure loss against bytes for every policy too, for curve.json, curve.csv and report.html");
  command
      ->add_option("--curve-settings", flags->curve_settings,
                   "Settings of each policy of the curve")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_flag(
      "--routers", flags->routers,
      "Train routers of heads (and measure those of a ReLU model's neurons) instead of a "
      "search");
  command->add_flag("--all-neurons", flags->all_neurons,
                    "Points of a ReLU model compute all neurons of its MLPs");
  command
      ->add_option("--router-windows", flags->router_windows,
                   "Windows that routers train on; candidates' on half of them")
      ->check(CLI::Range(8, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("--router-density", flags->router.density,
                   "Share of a layer's heads that a label calls positive")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  command
      ->add_option("--router-rounds", flags->router.rounds,
                   "Rounds of training: the first on dense states, each later one on those of the "
                   "sparse run")
      ->check(CLI::Range(1, 20))
      ->capture_default_str();
  command
      ->add_option("--recall", flags->router.recalls,
                   "Shares of the active neurons to find, ascending; profiles choose among them")
      ->delimiter(',')
      ->check(CLI::Range(0.5, 1.0))
      ->capture_default_str();
  add_format_flag(*command, flags->format);
  command->callback([flags, &run] { run = [flags] { return calibrate(*flags); }; });
}

}  // namespace polar::cli
