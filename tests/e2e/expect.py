"""Counts what holds in a test through the real program: expect() as often as needed, finish() at the end."""

import sys

held = failed = 0


def expect(condition, what):
    global held, failed
    if condition:
        held += 1
    else:
        failed += 1
        print("FAILED:", what)


def all_held():
    return failed == 0


def finish(least=0):
    """Ends the program: 1 if something failed, or fewer than `least` things were looked at."""
    print(f"{held} passed, {failed} failed")
    sys.exit(failed > 0 or held + failed < least)
