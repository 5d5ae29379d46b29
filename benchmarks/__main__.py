"""Every benchmark, one after the other, each in a process of its own: `make bench`, more than an hour.

python -m benchmarks [--quick]
"""

import argparse
import subprocess
import sys

BENCHMARKS = ("parity", "drift_loss", "growth", "queue", "features", "fields", "generators", "latent_reads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest of everything: does it run?")
    arguments = parser.parse_args()
    failed = []
    for name in BENCHMARKS:
        print(f"\n=== {name} ===", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if arguments.quick else [])]
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
