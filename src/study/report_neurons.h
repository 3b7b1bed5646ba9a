#pragma once

#include <string>

#include "sparsity/profile.h"

namespace polar::study {

/// For the report: how many neurons of each layer the points of a ReLU model compute, one line per
/// batch size, one chart per recall. Empty where no point chooses neurons.
std::string neuron_charts(const sparsity::Profile& profile);

}  // namespace polar::study
