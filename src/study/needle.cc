#include "study/needle.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "study/sequence_cache.h"

namespace polar::study {

namespace {

struct Wording {
  const char* fact;      // {} stands for the thing, then for the number
  const char* question;  // {} stands for the thing
};

constexpr Wording kWordings[kNeedleWordings] = {
    {"\nThe secret number of the {} is {}.\n",
     "\nQuestion: What is the secret number of the {}?\nAnswer: The secret number of the {} is"},
    {"\nRemember this: the code for the {} is {}.\n",
     "\nWhat is the code for the {}? The code for the {} is"},
    {"\nNote: the {} was given the number {}.\n",
     "\nWhich number was the {} given? The {} was given the number"},
    {"\nThe registration of the {} reads {}.\n",
     "\nPlease recall what the registration reads. The registration of the {} reads"},
    {"\nBy the way, {} is what we called locker key, and its value is {}.\n",
     "\nThe value that belongs to {} is"},
    {"\nThe {} can be opened with the combination {}.\n",
     "\nHow can it be opened? The {} can be opened with the combination"},
};
constexpr const char* kThings[] = {"garden",  "harbour", "library", "orchard",
                                   "railway", "theatre", "mill",    "castle"};

/// Replaces the first {} by `first` and all others by `rest`.
std::string fill(const std::string& pattern, const std::string& first, const std::string& rest) {
  std::string text;
  bool seen = false;
  for (size_t at = 0; at < pattern.size();) {
    if (pattern.compare(at, 2, "{}") == 0) {
      text += seen ? rest : first;
      seen = true;
      at += 2;
    } else {
      text += pattern[at++];
    }
  }
  return text;
}

int argmax(const float* row, int count) {
  return static_cast<int>(std::max_element(row, row + count) - row);
}

double log_probability(const float* row, int count, int token) {
  const float top = row[argmax(row, count)];
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::exp(row[i] - top);
  return row[token] - top - std::log(sum);
}

Answer judge(const std::vector<float>& logits, const Passage& passage, int vocabulary) {
  Answer answer;
  for (size_t i = 0; i < passage.scored_rows.size(); ++i) {
    const float* row = logits.data() + i * vocabulary;
    const int token = passage.tokens[passage.scored_rows[i] + 1];
    answer.correct &= argmax(row, vocabulary) == token;
    answer.log_probability += log_probability(row, vocabulary, token);
  }
  return answer;
}

}  // namespace

Result<std::vector<Needle>> make_needles(const std::string& where,
                                         const std::vector<int32_t>& haystack, const Encode& encode,
                                         int leading, int length, int count, int first_wording,
                                         int last_wording, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Needle> needles;
  for (int n = 0; n < count; ++n) {
    Needle needle;
    needle.wording = first_wording + n % (last_wording - first_wording);
    needle.depth = 0.1 + 0.6 * static_cast<double>(random() % 1000) / 1000.0;
    const Wording& wording = kWordings[needle.wording];
    const std::string thing = kThings[random() % std::size(kThings)];
    const std::string number = std::to_string(10000 + random() % 90000);
    const std::vector<int32_t> fact = encode(fill(wording.fact, thing, number), false);
    const std::string question_text = fill(wording.question, thing, thing);
    const std::vector<int32_t> question = encode(question_text, false);
    const std::vector<int32_t> asked = encode(question_text + " " + number, false);
    // The answer is what the encoding of question and answer adds; where the two merge at the seam,
    // it begins at the merge.
    size_t seam = 0;
    while (seam < question.size() && seam < asked.size() && question[seam] == asked[seam]) ++seam;

    const int filler =
        length - static_cast<int>(fact.size() + asked.size()) - (leading >= 0 ? 1 : 0);
    if (seam == 0 || filler < 16 || static_cast<int>(haystack.size()) < filler ||
        seam >= asked.size()) {
      return bad_input(where, "text",
                       std::to_string(haystack.size()) + " tokens for retrieval prompts of " +
                           std::to_string(length),
                       "a longer text, or longer prompts");
    }
    const size_t begin = random() % (haystack.size() - filler + 1);
    const auto at = static_cast<size_t>(needle.depth * filler);
    std::vector<int32_t>& tokens = needle.passage.tokens;
    if (leading >= 0) tokens.push_back(leading);
    tokens.insert(tokens.end(), haystack.begin() + begin, haystack.begin() + begin + at);
    tokens.insert(tokens.end(), fact.begin(), fact.end());
    tokens.insert(tokens.end(), haystack.begin() + begin + at, haystack.begin() + begin + filler);
    needle.passage.prompt = static_cast<int>(tokens.size());
    tokens.insert(tokens.end(), asked.begin(), asked.end());
    for (size_t i = needle.passage.prompt + seam; i < tokens.size(); ++i) {
      needle.passage.scored_rows.push_back(static_cast<int32_t>(i) - 1);
    }
    needles.push_back(std::move(needle));
  }
  return needles;
}

Result<std::unique_ptr<Retrieval>> Retrieval::create(backend::Device& device,
                                                     const model::Weights& weights,
                                                     std::vector<Needle> needles, DType kv_dtype,
                                                     PageExtras extras) {
  std::unique_ptr<Retrieval> made(new Retrieval(device, weights, std::move(needles)));
  if (made->needles_.empty()) return made;
  int length = 0, prompt = 0, asked = 0, answers = 0;
  for (const Needle& needle : made->needles_) {
    const int tokens = static_cast<int>(needle.passage.tokens.size());
    length = std::max(length, tokens);
    prompt = std::max(prompt, needle.passage.prompt);
    asked = std::max(asked, tokens - needle.passage.prompt);
    answers = std::max(answers, static_cast<int>(needle.passage.scored_rows.size()));
  }
  POLAR_ASSIGN(made->decoder_,
               model::Decoder::create(device, weights, {std::max(prompt, asked), answers}));
  if (extras.choosing_rows > 0) extras.choosing_rows = asked;
  POLAR_ASSIGN(auto cache,
               SequenceCache::create(device, weights.config, kv_dtype,
                                     static_cast<int>(made->needles_.size()), length, 0, extras));
  made->cache_ = std::make_unique<SequenceCache>(std::move(cache));
  for (size_t i = 0; i < made->needles_.size(); ++i) {
    const Passage& passage = made->needles_[i].passage;
    const Chunk chunk{static_cast<int>(i), 0, std::span(passage.tokens).first(passage.prompt),
                      false};
    made->decoder_->forward(made->cache_->pack({&chunk, 1}, {}), made->cache_->kv(),
                            made->dense_planner_, nullptr);
  }
  made->dense_ = made->answer(made->dense_planner_);
  return made;
}

/// Logits of a needle's scored rows. Rows behind the prompt run as decode steps do, each planned
/// alone.
std::vector<float> Retrieval::asked_logits(int needle, model::Planner& planner) {
  const Passage& passage = needles_[needle].passage;
  const auto end = static_cast<int>(passage.tokens.size());
  if (planner.neurons() != nullptr) planner.neurons()->set_rows_alone(true);
  const auto vocabulary = static_cast<size_t>(weights_.config.vocabulary);
  const int begin = passage.prompt;
  std::vector<int32_t> rows;
  for (const int32_t row : passage.scored_rows) rows.push_back(row - begin);
  const Chunk asked{needle, begin, std::span(passage.tokens).subspan(begin, end - begin), true};
  const float* logits =
      decoder_->forward(cache_->pack({&asked, 1}, rows), cache_->kv(), planner, nullptr);
  std::vector<float> all(rows.size() * vocabulary);
  device_.download(all.data(), logits, all.size() * sizeof(float));
  return all;
}

std::vector<Answer> Retrieval::answer(model::Planner& planner) {
  std::vector<Answer> answers;
  for (size_t i = 0; i < needles_.size(); ++i) {
    answers.push_back(judge(asked_logits(static_cast<int>(i), planner), needles_[i].passage,
                            weights_.config.vocabulary));
  }
  return answers;
}

std::vector<NeedleAnswers> Retrieval::ask(model::Planner* planner) {
  std::vector<Answer> sparse = dense_;
  if (planner != nullptr) sparse = answer(*planner);
  std::vector<NeedleAnswers> answers;
  for (size_t i = 0; i < needles_.size(); ++i) {
    const Needle& needle = needles_[i];
    answers.push_back({static_cast<int>(needle.passage.tokens.size()), needle.wording, needle.depth,
                       dense_[i], sparse[i]});
  }
  return answers;
}

NeedleResult sum_up(std::span<const NeedleAnswers> answers) {
  NeedleResult result;
  result.count = static_cast<int>(answers.size());
  for (const NeedleAnswers& answer : answers) {
    result.dense_correct += answer.dense.correct ? 1 : 0;
    result.sparse_correct += answer.sparse.correct ? 1 : 0;
    result.dense_log_probability += answer.dense.log_probability / result.count;
    result.sparse_log_probability += answer.sparse.log_probability / result.count;
  }
  return result;
}

Result<std::vector<NeedleAnswers>> ask_once(backend::Device& device, const model::Weights& weights,
                                            std::span<const Needle> needles,
                                            model::Planner* planner, DType kv_dtype,
                                            const std::function<void(int done, int of)>& progress,
                                            int at_once) {
  std::vector<NeedleAnswers> all;
  while (all.size() < needles.size()) {
    const size_t count = std::min<size_t>(at_once, needles.size() - all.size());
    const auto some = needles.subspan(all.size(), count);
    POLAR_ASSIGN(const auto retrieval,
                 Retrieval::create(device, weights, {some.begin(), some.end()}, kv_dtype,
                                   page_extras(planner, 1)));
    const std::vector<NeedleAnswers> answers = retrieval->ask(planner);
    all.insert(all.end(), answers.begin(), answers.end());
    if (progress) progress(static_cast<int>(all.size()), static_cast<int>(needles.size()));
  }
  return all;
}

}  // namespace polar::study
