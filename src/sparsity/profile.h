#pragma once
// Policy as data: what each unit (layer, KV head) may read at each operating point, bound to the
// model it was made for (docs/sparsity.md holds the format).

#include <memory>
#include <string>
#include <vector>

#include "backend/step.h"
#include "core/error.h"
#include "sparsity/routers.h"

namespace polar::sparsity {

/// What was measured of an operating point when it was made, by the code that serves.
struct Quality {
  double max_loss = 0;           // the budget it was made for: perplexity ratio - 1
  double perplexity_ratio = 0;   // on the held-out slice; 0: not measured
  double kl = 0;                 // mean, nats per token
  double agreement = 0;          // share of tokens with the same likeliest successor
  double effective_density = 1;  // KV bytes read / dense KV bytes, metadata included
  std::string text;              // what it was measured on
  // Retrieval prompts held out, and how many of them were answered; 0 of 0: not measured.
  int needles = 0, dense_needles = 0, sparse_needles = 0;
  double neuron_share = 1;  // neurons computed / all
};

/// One point of the trade between bytes and quality.
struct OperatingPoint {
  std::string name;  // "dense", "1%", "window"
  backend::PointLimits limits;
  std::vector<backend::UnitBudget> budgets;  // [layers][kv_heads]
  /// The share of the truly active neurons that a ReLU model's MLPs find, as Routers::recalls
  /// counts it (neurons_for says how many they compute); 0: all neurons are computed.
  double recall = 0;
  Quality quality;
};

/// An ordered list of operating points; point 0 is always dense.
struct Profile {
  int layers = 0;
  int kv_heads = 0;
  std::string
      fingerprint;      // of the model (ModelFile::fingerprint); empty: of any model of this shape
  int context_min = 0;  // the context lengths it was measured for, tokens
  int context_max = 0;
  backend::PageScore page_score = backend::PageScore::kMean;  // of units that choose their pages
  std::vector<OperatingPoint> points;
  /// What the model's answers lose (KL, nats per token) when one unit alone falls back, [layers *
  /// kv_heads]: on plain text, and on retrieval prompts. Empty: not measured.
  std::vector<double> text_importance, retrieval_importance;
  /// What chooses among routed units, and neurons; null where nothing is routed.
  std::shared_ptr<const Routers> routers;

  /// Whether some unit of a layer chooses among its pages, at some point.
  bool selects_pages(int layer) const;

  /// Whether some point's units see pages by their summaries.
  bool uses_summaries() const;

  /// Whether some unit of a layer, or of any layer, is routed, at some point.
  bool routes_units(int layer) const;
  bool routes_units() const;

  /// Whether some point computes only some neurons.
  bool routes_neurons() const;

  /// Index of a point by name, or -1.
  int find(const std::string& name) const;
};

/// A profile with the dense point alone.
Profile dense_profile(int layers, int kv_heads);

/// Dense, and a point "window" in which every unit reads its first `sink` and its newest `recent`
/// pages (and the page being filled).
Profile window_profile(int layers, int kv_heads, int sink, int recent,
                       const std::vector<int>& dense_layers);

/// Reads DIR/profile.json. Errors: not there, not JSON, another version, a table of the wrong size,
/// a value out of range, no dense point.
Result<Profile> read_profile(const std::string& directory);

/// Writes DIR/profile.json (and makes DIR), whole or not at all.
Status write_profile(const std::string& directory, const Profile& profile);

/// "none", "window", "pages", "full" or "routed".
const char* kind_name(backend::ReadKind kind);

/// Index of a profile's point by name. Without a name: the first point after dense, or dense.
/// Errors: a name that the profile does not have.
Result<int> find_point(const Profile& profile, const std::string& directory,
                       const std::string& name);

/// The shape of a model, as far as profiles and routers depend on it.
struct ModelShape {
  int layers = 0;
  int hidden = 0;
  int kv_heads = 0;
  int ffn = 0;
};

/// Reads DIR/profile.json, checks it against a model and, where it routes units or neurons, reads
/// DIR/routers.safetensors. Errors: as read_profile, check_profile and read_routers; a routed layer
/// without a router; a recall beyond those that the routers were measured for.
Result<Profile> open_profile(const std::string& directory, const ModelShape& shape,
                             const std::string& fingerprint);

/// Says why a profile does not belong to a model of this shape and fingerprint, if it does not.
Status check_profile(const Profile& profile, const std::string& directory, int layers, int kv_heads,
                     const std::string& fingerprint);

}  // namespace polar::sparsity
