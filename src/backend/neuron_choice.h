#pragma once
// One set of neurons for the rows of a step, from their routers' logits: one definition for the
// verbs of all backends and for studies.

#include <cstdint>
#include <vector>

namespace polar::backend {

/// How the rows of a step agree on one set of neurons.
enum class UnionBy {
  kSum,     // the largest sums of positive logits (the paper)
  kLikely,  // those that are likeliest active in some row, a logit being log-odds
  kRows,    // each row's best in turn, so that no row is crowded out
};

/// Minus the logarithm of the probability that a neuron of these log-odds is off. Over independent
/// rows it adds up: the larger the sum, the likelier some row activates it.
float off_cost(float logit);

/// What kSum or kLikely rank the neurons of logits [rows][ffn] by.
std::vector<float> union_scores(const float* logits, int rows, int ffn, UnionBy by);

/// The best `count` neurons of logits [rows][ffn], ascending. Ties: the lower neuron.
std::vector<int32_t> choose_neurons(const float* logits, int rows, int ffn, int count, UnionBy by);

}  // namespace polar::backend
