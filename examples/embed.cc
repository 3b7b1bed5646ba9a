// Polar inside your own program: load a model, ask several questions at once, print the answers.
//
//   build/examples/embed MODEL "The capital of France is" "Once upon a time"

#include <cstdio>

#include "engine/loaded_model.h"
#include "engine/text_stream.h"

int main(int argc, char** argv) {
  using namespace polar;
  if (argc < 3) return std::fprintf(stderr, "usage: embed MODEL PROMPT...\n"), 2;
  const auto fail = [](const Error& error) {
    return std::fprintf(stderr, "embed: %s\n", error.message.c_str()), 1;
  };
  auto device = backend::make_cpu_device({});
  if (!device.ok()) return fail(device.error());
  auto model = engine::load_model(argv[1], "", std::move(device).value());
  if (!model.ok()) return fail(model.error());
  auto engine = (*model)->make_engine({});  // destroyed before the model
  if (!engine.ok()) return fail(engine.error());

  std::vector<std::shared_ptr<engine::Generation>> answers;  // they run together
  for (int i = 2; i < argc; ++i) {
    engine::GenerationRequest request;
    request.prompt = (*model)->encode_prompt(argv[i]);
    request.max_tokens = 32;
    auto answer = (*engine)->submit(std::move(request));
    if (!answer.ok()) return fail(answer.error());
    answers.push_back(std::move(answer).value());
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    engine::TextStream text((*model)->tokenizer, {"\n"});
    std::printf("%s", argv[i + 2]);
    while (const auto event = answers[i]->next()) {  // waits for what comes
      for (const auto& token : event->tokens) std::printf("%s", text.push(token.token).c_str());
      if (text.stopped()) answers[i]->cancel();
    }
    std::printf("%s\n", text.finish().c_str());
  }
}
