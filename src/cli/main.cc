// polar: one program, one command per file.

#include <cstdio>

#include "cli/command.h"
#include "io/mmap.h"

int main(int argc, char** argv) {
  using namespace polar::cli;
  polar::io::explain_bus_errors();  // a model file that shrinks while mapped ends with a sentence
  CLI::App app{
      "Polar runs large language models and makes batched decoding faster by reading only the\n"
      "attention heads and neurons that the next token needs.",
      "polar"};
  app.require_subcommand(1);
  app.fallthrough(false);
  app.get_formatter()->column_width(34);

  Run run;
#ifdef POLAR_SERVE  // built where Boost.Beast was found
  add_serve(app, run);
#endif
  add_run(app, run);
  add_generate(app, run);
  add_demo(app, run);
  add_bench(app, run);
  add_eval(app, run);
  add_calibrate(app, run);
  add_inspect(app, run);
  add_tokenize(app, run);
  add_version(app, run);

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForAllHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::string sentence = error.what();
    for (char& c : sentence) {
      if (c == '\n') c = ' ';
    }
    std::fprintf(stderr, "polar: error: command line: %s (see polar --help)\n", sentence.c_str());
    return kBadInput;
  }
  const polar::Result<int> code = run();
  if (code.ok()) return code.value();
  std::fprintf(stderr, "polar: error: %s\n", code.error().message.c_str());
  return kBadInput;
}
