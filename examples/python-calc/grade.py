"""The grader: runs each unit test in a Python of its own and prints the scores last.

No code of the student's runs in this process. A test has passed only if its process reports a
secret that it read before the submission was imported, so leaving early, from the import or from a
test, is a failure; a hang is ended after a time limit.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import unittest

import test_calc

POINTS = {"evaluation": 60, "errors": 40}


def tests():
    """The names and sentences of the tests, by problem."""
    loader = unittest.TestLoader()
    for case in (test_calc.Evaluation, test_calc.Errors):
        for name in loader.getTestCaseNames(case):
            yield case.problem, f"{case.__name__}.{name}", getattr(case, name).__doc__


def failure(test, limit_s):
    """Runs one test. Returns None if it passed, else the reason."""
    secret = secrets.token_bytes(16)
    reader, writer = os.pipe()
    command = [sys.executable, "-B", "-S", __file__, "--run", test, "--report", str(writer)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writer], start_new_session=True)
    os.close(writer)
    hung = False
    try:
        child.communicate(secret, timeout=limit_s)
    except subprocess.TimeoutExpired:
        hung = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    os.set_blocking(reader, False)
    reported = b""
    with contextlib.suppress(BlockingIOError):  # a process that got away may hold the other end
        reported = os.read(reader, 64)
    os.close(reader)
    if hung:
        return "it did not come to an end"
    return None if child.returncode == 0 and reported == secret else "wrong"


def run_one(test, report):
    """In the child: runs the test, says why it failed, reports if it passed."""
    secret = sys.stdin.buffer.read()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromName(test, test_calc).run(result)
    for _, trace in result.failures + result.errors:
        print(f"  {trace.strip().splitlines()[-1]}", flush=True)
    if result.testsRun == 1 and result.wasSuccessful():
        os.write(report, secret)


def grade(limit_s):
    passed, count = dict.fromkeys(POINTS, 0), dict.fromkeys(POINTS, 0)
    for problem, test, says in tests():
        print(f"{test}: {says}", flush=True)
        why = failure(test, limit_s)
        count[problem] += 1
        passed[problem] += why is None
        print("  passed" if why is None else f"  FAILED: {why}", flush=True)
    scores = {problem: points * passed[problem] // count[problem] for problem, points in POINTS.items()}
    # The empty line ends whatever line a submission may have left open.
    print("\n" + json.dumps({"scores": scores}), flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--limit", type=float, default=20, help="seconds for each test")
    options.add_argument("--run", help=argparse.SUPPRESS)
    options.add_argument("--report", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.run:
        run_one(chosen.run, chosen.report)
    else:
        grade(chosen.limit)


if __name__ == "__main__":
    main()
