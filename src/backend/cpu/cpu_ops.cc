#include "backend/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_weight.h"
#include "backend/cpu/kv_layout.h"

namespace polar::backend::cpu {

namespace {

/// Stored rows that a thread claims at once: what memory sends ahead of time stays inside a claim,
/// so claims are long, but there are several per thread, so that none waits long for the other.
int64_t rows_per_claim(int64_t rows, size_t row_bytes, int threads) {
  constexpr int64_t kMostBytes = 256 << 10, kStep = 48;  // whole groups of every kernel
  const int64_t wanted =
      std::min(rows / (2 * threads), kMostBytes / static_cast<int64_t>(row_bytes));
  return std::max(kStep, (wanted + kStep - 1) / kStep * kStep);
}
/// Inputs that a thread packs at once.
constexpr int64_t kInputsPerClaim = 4096;

void normalize(const Norm& norm, const float* in, float* out, int width) {
  if (norm.weight == nullptr) {
    if (out != in) std::memcpy(out, in, width * sizeof(float));
    return;
  }
  double sum = 0, squares = 0;
  if (norm.kind == NormKind::kLayer) {
    for (int i = 0; i < width; ++i) sum += in[i];
  }
  const double mean = sum / width;
  for (int i = 0; i < width; ++i) squares += (in[i] - mean) * (in[i] - mean);
  const auto shift = static_cast<float>(mean);
  const auto scale = static_cast<float>(1.0 / std::sqrt(squares / width + norm.epsilon));
  for (int i = 0; i < width; ++i) out[i] = (in[i] - shift) * scale * norm.weight[i];
  if (norm.bias == nullptr) return;
  for (int i = 0; i < width; ++i) out[i] += norm.bias[i];
}

/// Turns the first `rope.dim` values of a head by the row's angles [dim / 2][cos, sin].
void rotate(const Rope& rope, const float* angles, float* head) {
  const int half = rope.dim / 2;
  for (int i = 0; i < half; ++i) {
    float& a = head[rope.interleaved ? 2 * i : i];
    float& b = head[rope.interleaved ? 2 * i + 1 : i + half];
    const float cos = angles[2 * i], sin = angles[2 * i + 1];
    const float turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
  }
}

float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu:
      return x > 0 ? x : 0.0f;
    case Activation::kSilu:
      return x / (1.0f + std::exp(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678118f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
  }
  return x;
}

}  // namespace

float* CpuOps::scratch(int thread, size_t values) {
  if (scratch_[thread].size() < values) scratch_[thread].resize(values);
  return scratch_[thread].data();
}

void CpuOps::embed(const EmbedArgs& args) {
  const Batch& batch = *args.batch;
  const CpuWeight& table = cpu(*args.table);
  const int64_t hidden = args.hidden.shape[1];
  const int64_t width = table.columns();
  std::vector<float> projected(args.projection != nullptr ? static_cast<size_t>(batch.rows) * width
                                                          : 0);
  float* rows = args.projection != nullptr ? projected.data() : args.hidden.as<float>();
  pool_.parallel_for(batch.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int32_t named = batch.token[row];
      table.copy_row(named >= 0 ? named : args.last_token[~named], rows + row * width);
      for (int i = 0; i < args.rope.dim / 2; ++i) {
        const float angle =
            static_cast<float>(batch.position[row]) * args.rope.inverse_frequency[i];
        float* turn = args.rotation + (row * (args.rope.dim / 2) + i) * 2;
        turn[0] = std::cos(angle) * args.rope.scale;
        turn[1] = std::sin(angle) * args.rope.scale;
      }
    }
  });
  if (args.projection != nullptr) {
    product(rows, width, batch.rows, *args.projection, nullptr, args.hidden.as<float>(), hidden);
  }
  if (args.positions == nullptr) return;
  std::vector<float> learned(hidden);
  for (int row = 0; row < batch.rows; ++row) {
    cpu(*args.positions).copy_row(batch.position[row] + args.position_offset, learned.data());
    float* out = args.hidden.as<float>() + row * hidden;
    for (int64_t i = 0; i < hidden; ++i) out[i] += learned[i];
  }
}

void CpuOps::norm(const NormArgs& args) {
  const auto width = static_cast<int>(args.residual.shape[1]);
  pool_.parallel_for(args.residual.shape[0], 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float* residual = args.residual.as<float>() + row * width;
      if (args.add.data != nullptr) {
        const float* add = args.add.as<float>() + row * width;
        for (int i = 0; i < width; ++i) residual[i] += add[i];
      }
      normalize(args.norm, residual, args.out.as<float>() + row * width, width);
    }
  });
}

void CpuOps::product(const float* x, int64_t x_stride, int rows, const Weight& weight,
                     const float* bias, float* y, int64_t y_stride, const int32_t* index,
                     int64_t count) {
  if (cpu(weight).gathers()) {
    POLAR_CHECK(index == nullptr);
    gathered_product(x, x_stride, rows, weight, bias, y, nullptr, weight.columns());
    return;
  }
  const int64_t k = weight.columns();
  DType packed_for = DType::kF32;
  for (const WeightPart& part : cpu(weight).parts()) {
    POLAR_CHECK(index == nullptr || cpu(weight).parts().size() == 1);
    const int64_t outputs = index != nullptr ? count : part.rows;
    const size_t packed_bytes = kernels_.packed_bytes(part.dtype, k);
    if (packed_bytes > 0 && part.dtype != packed_for) {
      packed_.resize(std::max(packed_.size(), rows * packed_bytes));
      const int64_t at_once = std::max<int64_t>(1, kInputsPerClaim / k);
      pool_.parallel_for(rows, at_once, [&](int64_t begin, int64_t end, int) {
        kernels_.pack({x, x_stride, rows, k, part.dtype, begin, end, packed_.data()});
      });
      packed_for = part.dtype;
    }
    const int64_t claim = rows_per_claim(outputs, part.row_bytes, pool_.threads());
    pool_.parallel_for(outputs, claim, [&](int64_t begin, int64_t end, int) {
      kernels_.matmul({x, x_stride, packed_.data(), rows, part.data, part.row_bytes, part.dtype, k,
                       index, begin, end, bias, y, y_stride});
    });
    y += part.rows;
    if (bias != nullptr) bias += part.rows;
  }
}

void CpuOps::gathered_product(const float* x, int64_t x_stride, int rows, const Weight& weight,
                              const float* bias, float* y, const int32_t* index, int64_t count) {
  const WeightPart& part = cpu(weight).parts()[0];
  const int64_t outputs = weight.rows();
  // Threads share the outputs, so every sum runs over the neurons in order. Few rows read long
  // pieces of stored rows; many rows keep their sums in the second cache level.
  const int64_t share = (outputs + 2 * pool_.threads() - 1) / (2 * pool_.threads());
  const int64_t slice = rows > 16 ? 128 : (share + 63) / 64 * 64;
  pool_.parallel_for(outputs, slice, [&](int64_t begin, int64_t end, int) {
    for (int row = 0; row < rows; ++row) {
      float* out = y + row * outputs;
      for (int64_t o = begin; o < end; ++o) out[o] = bias != nullptr ? bias[o] : 0.0f;
    }
    kernels_.accumulate(
        {x, x_stride, rows, part.data + dtype_bytes(part.dtype, static_cast<size_t>(begin)),
         part.row_bytes, part.dtype, index, 0, count, end - begin, y + begin, outputs});
  });
}

void CpuOps::qkv(const QkvArgs& args) {
  const Batch& batch = *args.batch;
  const KvView& kv = args.kv;
  const int64_t hidden = args.x.shape[1];
  const int dim = kv.head_dim;
  const int64_t width = static_cast<int64_t>(args.heads + 2 * kv.kv_heads) * dim;
  product(args.x.as<float>(), hidden, batch.rows, *args.weight, args.bias, args.scratch.as<float>(),
          width);
  pool_.parallel_for(batch.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float* head = args.scratch.as<float>() + row * width;
      const float* angles = args.rotation + row * (args.rope.dim / 2) * 2;
      const int32_t position = batch.position[row];
      const int32_t page =
          batch.pages[batch.sequence[row] * batch.table_stride + position / kPageTokens];
      for (int h = 0; h < args.heads + kv.kv_heads; ++h, head += dim) {
        const bool is_query = h < args.heads;
        normalize(is_query ? args.query_norm : args.key_norm, head, head, dim);
        if (args.rope.dim > 0) rotate(args.rope, angles, head);
        if (!is_query)
          store_key(kv, kv.block(args.layer, page, h - args.heads), position % kPageTokens, head);
      }
      for (int h = 0; h < kv.kv_heads; ++h, head += dim) {
        store_value(kv, kv.block(args.layer, page, h), position % kPageTokens, head);
      }
      std::memcpy(args.query.as<float>() + row * args.heads * dim,
                  args.scratch.as<float>() + row * width,
                  static_cast<size_t>(args.heads) * dim * sizeof(float));
    }
  });
  if (kv.index != nullptr || kv.summaries != nullptr) finish_pages(args);
}

/// The indices and summaries of the pages that this step's rows filled.
void CpuOps::finish_pages(const QkvArgs& args) {
  const Batch& batch = *args.batch;
  const KvView& kv = args.kv;
  const auto fills = [&](int64_t row) {
    return batch.position[row] % kPageTokens == kPageTokens - 1;
  };
  int filled = 0;
  for (int row = 0; row < batch.rows; ++row) filled += fills(row);
  if (filled == 0) return;
  // A chunk of a prompt fills a page every 16 rows, a decode step in any of its rows.
  const int64_t claim = filled * kPageTokens <= batch.rows ? kPageTokens : 1;
  pool_.parallel_for(batch.rows, claim, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      if (!fills(row)) continue;
      const int32_t page =
          batch.pages[batch.sequence[row] * batch.table_stride + batch.position[row] / kPageTokens];
      for (int h = 0; h < kv.kv_heads; ++h) {
        const std::byte* block = kv.block(args.layer, page, h);
        if (kv.index != nullptr)
          kernels_.index_page(
              {kv.page_score, kv.dtype, kv.head_dim, block, kv.index_of(args.layer, page, h)});
        if (kv.summaries != nullptr)
          kernels_.summarize_page(
              {kv.dtype, kv.head_dim, block, kv.summary_of(args.layer, page, h)});
      }
    }
  });
}

void CpuOps::linear(const LinearArgs& args) {
  product(args.x.as<float>(), args.x.shape[1], static_cast<int>(args.x.shape[0]), *args.weight,
          args.bias, args.y.as<float>(), args.y.shape[1]);
}

/// Activates scratch [rows][width] (or [rows][gate, up] of width each) in place, into [rows][width]
/// with the rows' own stride.
void CpuOps::activate(const MlpArgs& args, int64_t width) {
  const int64_t stride = args.gated ? 2 * width : width;
  constexpr int64_t kPiece = 1024;
  const int64_t pieces = (width + kPiece - 1) / kPiece;
  pool_.parallel_for(args.x.shape[0] * pieces, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % pieces * kPiece;
      const int64_t count = std::min(kPiece, width - first);
      float* values = args.scratch.as<float>() + item / pieces * stride + first;
      if (args.gated && args.activation == Activation::kSilu) {
        kernels_.silu_mul(values, values + width, values, count);
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        values[i] = activated(args.activation, values[i]) * (args.gated ? values[i + width] : 1.0f);
      }
    }
  });
}

void CpuOps::neurons(const NeuronArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t ffn = args.wide->rows();
  const float* x = args.x.as<float>();
  int64_t width = args.x.shape[1];
  if (args.narrow != nullptr) {
    narrow_.resize(rows * args.narrow->rows());
    product(x, width, rows, *args.narrow, nullptr, narrow_.data(), args.narrow->rows());
    x = narrow_.data();
    width = args.narrow->rows();
  }
  auto* logits = args.scratch.as<float>();
  product(x, width, rows, *args.wide, args.bias, logits, ffn);
  for (int64_t i = 0; i < rows * ffn; ++i) logits[i] /= args.unit;
  const std::vector<int32_t> chosen =
      choose_neurons(logits, rows, static_cast<int>(ffn), args.count, args.by);
  std::copy(chosen.begin(), chosen.end(), args.index);
}

void CpuOps::mlp(const MlpArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int32_t* index = args.neurons != nullptr ? args.neurons->index : nullptr;
  POLAR_CHECK(index == nullptr || (!args.gated && cpu(*args.down).gathers()));
  const int64_t width = index != nullptr ? args.neurons->count : args.down->columns();
  const int64_t stride = args.gated ? 2 * width : width;
  float* hidden = args.scratch.as<float>();
  product(args.x.as<float>(), args.x.shape[1], rows, *args.up, args.up_bias, hidden, stride, index,
          width);
  activate(args, width);
  if (cpu(*args.down).gathers()) {
    gathered_product(hidden, stride, rows, *args.down, args.down_bias, args.y.as<float>(), index,
                     width);
  } else {
    product(hidden, stride, rows, *args.down, args.down_bias, args.y.as<float>(), args.y.shape[1]);
  }
}

void CpuOps::head(const HeadArgs& args) {
  const Batch& batch = *args.batch;
  const int64_t hidden = args.hidden.shape[1];
  const int64_t embedding = args.weight->columns();
  float* normed = args.scratch.as<float>();
  std::vector<float> sum(hidden);
  for (int l = 0; l < batch.logit_rows; ++l) {
    const int64_t row = batch.logit_row[l];
    std::memcpy(sum.data(), args.hidden.as<float>() + row * hidden, hidden * sizeof(float));
    if (args.add.data != nullptr) {
      const float* add = args.add.as<float>() + row * hidden;
      for (int64_t i = 0; i < hidden; ++i) sum[i] += add[i];
    }
    normalize(args.norm, sum.data(), normed + l * hidden, static_cast<int>(hidden));
  }
  const float* x = normed;
  if (args.projection != nullptr) {
    float* projected = normed + static_cast<int64_t>(batch.logit_rows) * hidden;
    product(normed, hidden, batch.logit_rows, *args.projection, nullptr, projected, embedding);
    x = projected;
  }
  product(x, embedding, batch.logit_rows, *args.weight, nullptr, args.logits, args.weight->rows());
}

}  // namespace polar::backend::cpu
