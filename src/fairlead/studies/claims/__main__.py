"""`python -m fairlead.studies.claims [NAMES] [--record] [--resume] [--list] [--json]`."""

import argparse
import json
import sys

from fairlead.studies import claims


def main() -> int:
    """Runs or lists claims; the exit code is 1 if one raised."""
    parser = argparse.ArgumentParser(prog="python -m fairlead.studies.claims", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or patterns; default: all")
    parser.add_argument("--record", action="store_true", help="record each result as it comes")
    parser.add_argument("--resume", action="store_true", help="skip what is recorded and current")
    parser.add_argument("--list", action="store_true", help="show recorded results, run nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if given.list:
        results = [r for r in claims.recorded() if not given.names or r["name"] in given.names]
    else:
        results = claims.run(given.names or None, progress, save=given.record, resume=given.resume)
    print(json.dumps(results, indent=1) if given.json else claims.markdown(results))
    return int(any(r["error"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
