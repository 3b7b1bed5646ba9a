// Checks the plan kernels, page indices, page scores and page selection against float64 on the CPU
// and the ranges of ranges.h: ragged lengths, page boundaries, every kind of budget, ties, poisoned
// outputs. Exit code 0 if all is right, 1 if not, 77 where there is no GPU. `--small` is quick
// enough for a memory checker.

#include <cstring>

#include "backend/cuda/attention_scene.cuh"
#include "backend/cuda/page_index.cuh"
#include "backend/cuda/page_select.cuh"
#include "backend/ranges.h"

namespace polar::backend::cuda::check {
namespace {

constexpr double kLog2E = 1.4426950408889634;

bool same(const PageRanges& a, const PageRanges& b) {
  return a.count == b.count && a.tail_count == b.tail_count &&
         (a.count == 0 || a.begin == b.begin) &&
         (a.tail_count == 0 || a.tail_begin == b.tail_begin) && a.summaries == b.summaries &&
         (a.summaries == 0 || (a.summary_begin == b.summary_begin &&
                               a.summary_end == b.summary_end && a.read_bits == b.read_bits));
}

/// The two bits of a token and channel in the codes of one page, as PageCodes describes them.
int stored_code(const uint32_t* page, int head_dim, int token, int channel) {
  const int chunks = head_dim / 64, chunk = channel / 64, rest = head_dim % 64;
  const int lane = token % 8 * 4 + channel % 16 / 4, half = token / 8, part = channel % 64 / 16;
  if (chunk < chunks) {
    const bool paired = chunk / 2 * 2 + 1 < chunks;
    const int at = chunk / 2 * 128 + (paired ? lane * 4 + chunk % 2 * 2 : lane * 2) + half;
    return static_cast<int>(page[at] >> (channel % 4 * 8 + part * 2) & 3);
  }
  const uint32_t* behind = page + chunks * 64;
  if (rest == 32)
    return static_cast<int>(behind[lane] >> (channel % 4 * 8 + half * 4 + part * 2) & 3);
  const uint32_t two = behind[lane / 2] >> (lane % 2 * 16);
  return static_cast<int>(two >> (channel % 4 * 4 + half * 2) & 3);
}

/// The normalised Hadamard rotation of page_score.h, from its definition.
std::vector<double> rotated(const std::vector<double>& v) {
  const int dim = static_cast<int>(v.size()), width = rotated_channels(dim);
  std::vector<double> out(dim, 0.0);
  for (int d = 0; d < dim; ++d) {
    for (int e = d / width * width; e < (d / width + 1) * width; ++e)
      out[d] += __builtin_parity(d & e & (width - 1)) ? -v[e] : v[e];
    out[d] /= std::sqrt(width);
  }
  return out;
}

/// One random plan of one layer: what goes in, what the kernels make of it, and whether it is
/// right.
class PlanCheck {
 public:
  PlanCheck(std::mt19937& random, PageScore score, int kv_heads, int group, int head_dim,
            std::vector<int> lengths, int window)
      : score_(score),
        window_(window),
        scene_(random, kv_heads, group, head_dim, DType::kBF16, std::move(lengths), 0),
        rows_(static_cast<int>(scene_.lengths.size())),
        units_(rows_ * kv_heads),
        stride_(score_stride(scene_.table_stride)),
        scale_(1.0f / std::sqrt(static_cast<float>(head_dim))) {
    scene_.list_capacity = units_ * list_entries(scene_.table_stride);
    scene_.pages.resize(scene_.list_begin() + scene_.list_capacity, -1);
    const int points = 3;
    budgets_.resize(points * kv_heads);
    limits_.resize(points);
    for (auto& l : limits_)
      l = {static_cast<int>(random() % 3), static_cast<int>(1 + random() % 5),
           static_cast<int>(random() % kv_heads)};
    for (auto& b : budgets_) {
      b.kind = random() % 2 == 0 ? ReadKind::kPages : static_cast<ReadKind>(random() % 5);
      b.fallback = static_cast<ReadKind>(random() % 2);
      b.summaries = random() % 2 == 0;
      b.least = static_cast<uint16_t>(random() % 3 == 0 ? random() % 12 : 0);
      b.pages_per_mille = 1 + random() % 1000;
    }
    router_.resize(units_);
    for (int r = 0; r < rows_; ++r) {
      position_.push_back(scene_.lengths[r] - 1);
      sequence_.push_back(r);
      point_.push_back(random() % points);
    }
    for (auto& v : router_) v = static_cast<float>(random() % 7);  // with ties
    query_ = make_queries(static_cast<size_t>(units_) * group * head_dim, random(), query_bits_);
  }

  void run() {
    launch();
    double worst = 0;
    check_index(worst);
    std::vector<int32_t> want_read(rows_, 0), want_scored(rows_, 0);
    for (int u = 0; u < units_; ++u) {
      want_read[u / heads()] += plan_[u].count + plan_[u].tail_count;
      want_scored[u / heads()] += check_unit(u);
    }
    check_scores(worst);
    for (int r = 0; r < rows_; ++r) {
      if (read_[r].blocks != want_read[r]) fail("blocks read", r);
      if (read_[r].scored != want_scored[r]) fail("pages scored", r);
    }
    check_schedule();
    report("plan by " + std::string(page_score_name(score_)) + " " + std::to_string(rows_) +
               " rows x " + std::to_string(heads()) + " x " + std::to_string(scene_.group) + " x " +
               std::to_string(dim()) + " window " + std::to_string(window_),
           ok_, worst);
  }

 private:
  int heads() const { return scene_.kv_heads; }
  int dim() const { return scene_.head_dim; }
  int table(int row) const { return row * scene_.table_stride; }
  void fail(const char* what, int where) {
    if (ok_) std::printf("  %d: %s\n", where, what);
    ok_ = false;
  }

  void launch() {
    DeviceArray<std::byte> kv(scene_.kv_bytes());
    kv.fill(0xff);
    DeviceArray<int32_t> valid(scene_.valid), pages(scene_.pages), positions(position_),
        sequences(sequence_), points(point_);
    DeviceArray<ReadCount> read(rows_);
    fill_kv<<<1024, 256>>>(kv.data, valid.data, scene_.page_count, heads(), dim(), DType::kBF16);
    DeviceArray<UnitBudget> budgets(budgets_);
    DeviceArray<PointLimits> limits(limits_);
    DeviceArray<float> routers(router_),
        scores(page_scores_bytes(units_, scene_.group, scene_.table_stride) / sizeof(float)),
        half_steps(static_cast<size_t>(scene_.page_count) * heads());
    DeviceArray<uint16_t> queries(query_bits_);
    DeviceArray<uint32_t> index(static_cast<size_t>(scene_.page_count) * heads() * dim());
    index.fill(0xff);
    half_steps.fill(0xff);
    scores.fill(0xff);
    DeviceArray<PageRanges> plans(units_);
    plans.fill(0xff);
    const int blocks = attention_shares();
    DeviceArray<std::byte> schedule(schedule_bytes(units_, blocks));

    PageSelection s;
    s.plan = {positions.data,
              sequences.data,
              points.data,
              rows_,
              heads(),
              scene_.table_stride,
              window_,
              budgets.data,
              limits.data,
              routers.data,
              scene_.list_begin(),
              scene_.list_capacity,
              plans.data,
              read.data,
              schedule_at(schedule.data, blocks)};
    // All full pages get their indices by rows that fill them; but the last page of a sequence that
    // ends with it, which the planned row fills.
    std::vector<int32_t> filling, of_sequence;
    for (int r = 0; r < rows_; ++r) {
      for (int p = 0; p + 1 < scene_.lengths[r]; ++p)
        filling.push_back(p), of_sequence.push_back(r);
    }
    DeviceArray<int32_t> filling_positions(filling), filling_sequences(of_sequence);
    s.index = {filling_positions.data,
               filling_sequences.data,
               static_cast<int>(filling.size()),
               heads(),
               dim(),
               scene_.table_stride,
               pages.data,
               kv.data,
               DType::kBF16,
               score_,
               index.data,
               half_steps.data};
    CUDA_OK(launch_page_index(s.index, nullptr));
    s.index.position = positions.data;
    s.index.sequence = sequences.data;
    s.index.rows = rows_;
    s.query = queries.data;
    s.group = scene_.group;
    s.scale = scale_;
    s.scores = scores.data;
    s.pages = pages.data;
    for (int run = 0; run < 2; ++run) {
      read.fill(0);
      CUDA_OK(launch_plan(s.plan, nullptr));
      CUDA_OK(launch_page_selection(s, nullptr));
      CUDA_OK(cudaDeviceSynchronize());
    }
    plan_ = plans.host();
    lists_ = pages.host();
    index_ = index.host();
    half_steps_ = half_steps.host();
    scores_ = scores.host();
    read_ = read.host();
    schedule_ = schedule.host();
  }

  const uint32_t* codes_of(int page, int head) const {
    return index_.data() + (static_cast<size_t>(page) * heads() + head) * dim();
  }
  float mean_of(int page, int head, int d) const {
    const auto* means = reinterpret_cast<const uint16_t*>(index_.data());
    return from_bits(DType::kBF16, means[(static_cast<size_t>(page) * heads() + head) * dim() + d]);
  }
  double key(int page, int head, int token, int d) const {
    return from_bits(DType::kBF16,
                     to_bits(DType::kBF16, kv_value(page * heads() + head, 0, token, d)));
  }

  /// The indices of a sample of the full pages, from the keys.
  void check_index(double& worst) {
    std::vector<int> full;
    for (int r = 0; r < rows_; ++r) {
      for (int page = 0; page < scene_.lengths[r] / kPageTokens; ++page)
        if (page % 50 == 0 || (page + 1) * kPageTokens == scene_.lengths[r])
          full.push_back(scene_.pages[table(r) + page]);
    }
    for (const int page : full) {
      for (int h = 0; h < heads(); ++h)
        score_ == PageScore::kMean ? check_means(page, h, worst) : check_codes(page, h, worst);
    }
  }
  void check_means(int page, int head, double& worst) {
    for (int d = 0; d < dim(); ++d) {
      double exact = 0;
      for (int t = 0; t < kPageTokens; ++t) exact += key(page, head, t, d) / kPageTokens;
      const double error = std::abs(mean_of(page, head, d) - exact);
      if (!(error < 4e-3)) fail("mean key", page);
      worst = std::max(worst, error);
    }
  }
  void check_codes(int page, int head, double& worst) {
    double squares = 0;
    std::vector<std::vector<double>> keys(kPageTokens, std::vector<double>(dim()));
    for (int t = 0; t < kPageTokens; ++t) {
      for (int d = 0; d < dim(); ++d) {
        keys[t][d] = key(page, head, t, d);
        squares += keys[t][d] * keys[t][d];
      }
    }
    const double step = std::sqrt(squares / (kPageTokens * dim()));
    const double half_step = half_steps_[static_cast<size_t>(page) * heads() + head];
    if (!(std::abs(half_step * 2 / step - 1) < 1e-5)) fail("half step", page);
    for (int t = 0; t < kPageTokens; ++t) {
      const auto values = rotated(keys[t]);
      for (int d = 0; d < dim(); ++d) {
        const int code = stored_code(codes_of(page, head), dim(), t, d);
        const int want = (values[d] > -step) + (values[d] > 0) + (values[d] > step);
        // Rounding may decide where a value stands at a border.
        const double border = std::abs(values[d] - (std::max(code, want) - 2) * step);
        if (code != want && !(std::abs(code - want) == 1 && border < 1e-5 * step))
          fail("code", page);
        if (code != want) worst = std::max(worst, border);
      }
    }
  }

  ReadKind kind_of(int u) const {
    const int r = u / heads(), h = u % heads();
    const UnitBudget* budgets = &budgets_[point_[r] * heads()];
    if (budgets[h].kind != ReadKind::kRouted) return budgets[h].kind;
    std::vector<int> order;
    for (int i = 0; i < heads(); ++i) {
      if (budgets[i].kind == ReadKind::kRouted) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return router_[r * heads() + a] > router_[r * heads() + b];
    });
    const auto at = std::find(order.begin(), order.end(), h) - order.begin();
    return at < limits_[point_[r]].routed ? ReadKind::kFull : budgets[h].fallback;
  }

  const UnitBudget& budget_of(int u) const {
    return budgets_[point_[u / heads()] * heads() + u % heads()];
  }

  /// What unit u reads; returns how many pages were scored for it.
  int check_unit(int u) {
    const int r = u / heads();
    const PointLimits l = limits_[point_[r]];
    const ReadKind kind = kind_of(u);
    const PageRanges full = full_ranges(position_[r], window_, table(r));
    if (kind == ReadKind::kNone && !same(plan_[u], {})) fail("none", u);
    if (kind == ReadKind::kFull && !same(plan_[u], full)) fail("full", u);
    if (kind == ReadKind::kWindow &&
        !same(plan_[u], window_ranges(position_[r], window_, table(r), l, budget_of(u).summaries)))
      fail("window", u);
    return kind == ReadKind::kPages ? check_pages(u, full) : 0;
  }

  int check_pages(int u, const PageRanges& full) {
    const int r = u / heads(), own = position_[r] / kPageTokens, seen = full.tail_count;
    const PointLimits l = limits_[point_[r]];
    const UnitBudget& b = budget_of(u);
    const int budget = std::max<int>((b.pages_per_mille * seen + 999) / 1000, b.least);
    if (same(plan_[u], full)) {
      if (window_ == 0 && budget < seen && l.sink + l.recent + 1 < seen) fail("all pages read", u);
      return 0;
    }
    const bool cut = window_ > 0 && position_[r] >= window_;
    const int sink = cut ? 0 : std::min(l.sink, own);
    const int tail =
        std::max(own - l.recent, cut ? first_visible_page(position_[r], window_) : sink);
    const int in_all = plan_[u].count + plan_[u].tail_count;
    if (in_all != std::max(budget, sink + own + 1 - tail)) fail("wrong count", u);
    check_summaries(u, tail);
    if (plan_[u].tail_begin + plan_[u].tail_count != table(r) + own + 1) fail("newest", u);
    // Every page of the list is one of the row's, ascending, and scored no lower than those left
    // out.
    std::vector<int> logical;
    for (int i = 0; i < plan_[u].count; ++i) {
      const auto* begin = &scene_.pages[table(r)];
      const auto* at = std::find(begin, begin + own, lists_[plan_[u].begin + i]);
      if (at == begin + own) fail("a page that is not the row's", u);
      logical.push_back(static_cast<int>(at - begin));
      if (i > 0 && logical[i] <= logical[i - 1]) fail("order", u);
    }
    for (int i = 0; i < sink; ++i) {
      if (logical[i] != i) fail("sink", u);
    }
    if (static_cast<int>(logical.size()) == sink) return 0;
    const int first =
        cut ? full.tail_begin - table(r) + ((position_[r] - window_ + 1) % kPageTokens != 0) : sink;
    scored_.push_back({u, first, tail});
    const std::vector<double> mass = masses(scored_.back());
    double least = 1e30, most = 0;
    for (int page = first; page < tail; ++page) {
      const bool chosen = std::find(logical.begin(), logical.end(), page) != logical.end();
      if (chosen)
        least = std::min(least, mass[page - first]);
      else
        most = std::max(most, mass[page - first]);
    }
    if (!(least >= most * (1 - 1e-4))) fail("not the best pages", u);
    return tail - first;
  }

  /// What a unit that chooses leaves out is seen by its summaries, if the budget says so; the bits
  /// are those of its list.
  void check_summaries(int u, int tail) {
    const PageRanges& plan = plan_[u];
    const int r = u / heads();
    if (!budget_of(u).summaries) {
      if (plan.summaries != 0 || plan.summary_end != plan.summary_begin) fail("summaries", u);
      return;
    }
    int left = 0;
    for (int page = plan.summary_begin; page < plan.summary_end; ++page) {
      const auto* list = lists_.data() + plan.begin;
      const bool listed =
          plan.begin >= scene_.list_begin() &&
          std::find(list, list + plan.count, scene_.pages[table(r) + page]) != list + plan.count;
      const bool seen =
          (summary_bits(plan, page / kBitPages, lists_.data()) >> page % kBitPages & 1) != 0;
      if (seen == listed) fail("bits of summaries", u);
      left += seen;
    }
    if (left != plan.summaries || plan.summary_end != tail) fail("count of summaries", u);
  }

  struct Scored {
    int unit, first, tail;  // logical pages [first, tail)
  };
  const float* scores_of(int unit, int g) const {
    return &scores_[(static_cast<size_t>(unit) * scene_.group + g) * stride_];
  }
  /// The candidates' masses by the device's own scores.
  std::vector<double> masses(const Scored& s) const {
    std::vector<double> mass(s.tail - s.first, 0.0);
    for (int g = 0; g < scene_.group; ++g) {
      const float* score = scores_of(s.unit, g);
      const double top = *std::max_element(score + s.first, score + s.tail);
      double sum = 0;
      for (int page = s.first; page < s.tail; ++page) sum += std::exp2(score[page] - top);
      for (int page = s.first; page < s.tail; ++page)
        mass[page - s.first] += std::exp2(score[page] - top) / sum;
    }
    return mass;
  }

  /// The scores, from the stored indices: exact for means but for the sums' rounding; by codes the
  /// query has eight bits a channel.
  void check_scores(double& worst) {
    std::atomic<bool> right{true};
    std::vector<double> errors(scored_.size() * scene_.group, 0.0);
    parallel(static_cast<int>(errors.size()), [&](int i) {
      const Scored& s = scored_[i / scene_.group];
      const int g = i % scene_.group, row = s.unit / heads(), head = s.unit % heads();
      const float* q = &query_[(static_cast<size_t>(s.unit) * scene_.group + g) * dim()];
      const std::vector<double> query(q, q + dim()), turned = rotated(query);
      double largest = 0, squares = 0, of_score = 0;
      for (const double v : turned) largest = std::max(largest, std::abs(v));
      for (int page = s.first; page < s.tail; ++page) {
        const int physical = scene_.pages[table(row) + page];
        double want = 0, bound = 1e-3;
        if (score_ == PageScore::kMean) {
          for (int d = 0; d < dim(); ++d) want += query[d] * mean_of(physical, head, d);
        } else {
          const double half_step = half_steps_[static_cast<size_t>(physical) * heads() + head];
          want = -1e30;
          for (int t = 0; t < kPageTokens; ++t) {
            double sum = 0;
            for (int d = 0; d < dim(); ++d)
              sum += turned[d] * (2 * stored_code(codes_of(physical, head), dim(), t, d) - 3) *
                     half_step;
            want = std::max(want, sum);
          }
          bound = 3 * half_step * dim() * largest / 127 / 2 * scale_ * kLog2E * 1.001;
        }
        want *= scale_ * kLog2E;
        const double error = std::abs(scores_of(s.unit, g)[page] - want);
        if (!(error <= bound)) right = false;
        squares += error * error;
        of_score += want * want;
      }
      errors[i] = std::sqrt(squares / of_score);
    });
    if (!right) fail("scores", -1);
    for (const double error : errors) {
      if (!(error < (score_ == PageScore::kMean ? 1e-4 : 0.02))) fail("scores on the whole", -1);
      worst = std::max(worst, error);
    }
  }

  /// Pages that attention walks for a unit: a group of summaries is one.
  static int walked(const PageRanges& ranges) {
    return summary_groups(ranges).count + ranges.count + ranges.tail_count;
  }

  void check_schedule() {
    const int blocks = attention_shares();
    int header[2];
    std::memcpy(header, schedule_.data(), sizeof(header));
    const auto work_at = [&](int i) {
      WorkUnit work;
      std::memcpy(&work, schedule_.data() + schedule_header_bytes(blocks) + i * sizeof(work),
                  sizeof(work));
      return work;
    };
    int before = 0, works = 0;
    for (int u = 0; u < units_; ++u) {
      const int row = u / heads(), count = walked(plan_[u]);
      if (count == 0) continue;
      const WorkUnit w = work_at(works);
      if (w.first != before || w.unit != u ||
          std::memcmp(&w.ranges, &plan_[u], sizeof(PageRanges)) != 0 ||
          w.position != position_[row] || w.table_begin != table(row) || w.kv_head != u % heads())
        fail("schedule", u);
      before += count;
      ++works;
    }
    if (header[0] != before || header[1] != works) fail("schedule header", -1);
    for (int i = 0; i < blocks * kShareParts && before > 0; ++i) {
      const auto bound = [&](int share) {
        return share < blocks ? share_begin(before, share, blocks) : before;
      };
      const int share = i / kShareParts;
      const int page = part_begin(bound(share), bound(share + 1), i % kShareParts);
      if (page >= bound(share + 1)) continue;
      int start;
      std::memcpy(&start, schedule_.data() + sizeof(header) + i * sizeof(start), sizeof(start));
      const WorkUnit work = start >= 0 && start < works ? work_at(start) : WorkUnit{};
      const int work_end = work.first + walked(work.ranges);
      if (page < work.first || page >= work_end) fail("start of a part", i);
      if (work.first < bound(work.first_share) || work.first >= bound(work.first_share + 1) ||
          work_end <= bound(work.last_share) || work_end > bound(work.last_share + 1))
        fail("shares of a unit", i);
    }
  }

  PageScore score_;
  int window_;
  Scene scene_;
  int rows_, units_, stride_;
  float scale_;
  std::vector<UnitBudget> budgets_;
  std::vector<PointLimits> limits_;
  std::vector<int32_t> position_, sequence_, point_;
  std::vector<float> router_, query_;
  std::vector<uint16_t> query_bits_;

  std::vector<PageRanges> plan_;
  std::vector<int32_t> lists_;
  std::vector<uint32_t> index_;
  std::vector<float> half_steps_, scores_;
  std::vector<ReadCount> read_;
  std::vector<std::byte> schedule_;
  std::vector<Scored> scored_;
  bool ok_ = true;
};

int run(bool small) {
  if (!has_gpu()) return kSkipped;
  std::mt19937 random(20251123);
  for (const PageScore score : {PageScore::kMean, PageScore::kCodes}) {
    const auto check = [&](int kv_heads, int group, int head_dim, std::vector<int> lengths,
                           int window) {
      PlanCheck(random, score, kv_heads, group, head_dim, std::move(lengths), window).run();
    };
    for (const int head_dim : {64, 80, 96, 128, 256})
      check(2, 3, head_dim, random_lengths(random, 6, small ? 600 : 5000), 0);
    check(8, 4, 128, random_lengths(random, 6, small ? 600 : 16000), 0);
    check(4, 1, 64, random_lengths(random, 12, 3000), 0);
    if (small) continue;
    check(3, 9, 80, random_lengths(random, 12, 7000), 1000);
    check(2, 16, 128, {4000, 32, 16}, 0);
    check(2, 2, 256, {16385, 33000, 100, 8192}, 0);
    check(2, 2, 96, {4000, 4096, 100, 3999}, 0);
    check(40, 1, 128, random_lengths(random, 64, 1000), 0);
    check(2, 4, 128, {131000, 70000}, 0);
  }
  return verdict();
}

}  // namespace
}  // namespace polar::backend::cuda::check

int main(int argc, char** argv) {
  return polar::backend::cuda::check::run(argc > 1 && std::strcmp(argv[1], "--small") == 0);
}
