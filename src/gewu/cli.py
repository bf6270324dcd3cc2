"""The command `gewu`: run, try, list, show, schema.

Data goes to stdout, talk to stderr. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gewu import __version__
from gewu.core.errors import GewuError, InputError

if TYPE_CHECKING:
    from gewu.jobs.job import Job
    from gewu.jobs.result import Result
    from gewu.jobs.talk import Talker

EXIT_CODES = """exit codes:
  0   finished
  2   the input is wrong
  3   not converged: the numbers are flagged
  4   memory, disk, a device or a lock is missing, or a stored file is damaged
  5   an error inside gewu
  75  stopped by a signal or the time limit, with a checkpoint: run the same job again to go on
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.verb(options)
        _flush()
        return code
    except GewuError as error:
        print(f"gewu: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        _flush()
        return 0
    except Exception:
        traceback.print_exc()
        print("gewu: internal error; please report it", file=sys.stderr)
        return 5


def _flush() -> None:
    """Flush stdout; when its reader went away, give what is left to nobody."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(prog="gewu", description="Simulate, and learn from what was simulated.")
    top.add_argument("--version", action="version", version=f"gewu {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, function: Any, text: str, **more: Any) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", **more)
        made.add_argument("--json", action="store_true", help="JSON, one object a line, on stdout")
        made.set_defaults(verb=function)
        return made

    plain = argparse.RawDescriptionHelpFormatter
    run = verb("run", _run, "run a job, or a file or folder such as silicon.cif", epilog=EXIT_CODES, formatter_class=plain)
    run.add_argument("job", metavar="FILE", help="job file (TOML), or a file or folder that an engine recognises")
    attempt = verb("try", _try, "run an example that comes with gewu", epilog=EXIT_CODES, formatter_class=plain)
    attempt.add_argument("name", nargs="?", metavar="NAME", help="which one; without it, list them")
    for each in (run, attempt):
        each.add_argument("--out", metavar="DIR", help="result directory (default: the job's name with .result)")
        each.add_argument("--fresh", action="store_true", help="start over, replacing an earlier result")
    verb("list", _list, "list engines and examples")
    show = verb("show", _show, "show the numbers of a result")
    show.add_argument("result", metavar="DIR", help="result directory")
    show.add_argument("--open", action="store_true", help="open the report in a browser")
    schema = verb("schema", _schema, "describe the keys of a job")
    schema.add_argument("engine", nargs="?", metavar="ENGINE", help="engine; without it, the [job] table")
    return top


def _run(options: argparse.Namespace) -> int:
    return _run_file(Path(options.job), options)


def _try(options: argparse.Namespace) -> int:
    examples = _examples()
    if options.name is None:
        _print_rows(({"example": name, "title": _title(path)} for name, path in examples.items()), options.json)
        return 0
    if options.name not in examples:
        raise InputError("no such example", value=options.name, allowed=", ".join(examples))
    return _run_file(examples[options.name], options)


def _run_file(path: Path, options: argparse.Namespace) -> int:
    from gewu.core.ranks import world
    from gewu.jobs.run import failed, run_job
    from gewu.jobs.talk import Talker

    ranks = None
    talker = Talker(as_json=options.json)
    try:
        ranks = world()
        if not ranks.is_root:
            talker = Talker(quiet=True)
        outcome = run_job(_job(path, talker), out=options.out, fresh=options.fresh, talker=talker, ranks=ranks)
    except Exception as error:
        outcome = failed(error)
        if not isinstance(error, GewuError):
            traceback.print_exc()
    if outcome.exit_code in (0, 3) and not options.json and outcome.path is not None and (ranks is None or ranks.is_root):
        from gewu.jobs.result import Result

        _print_numbers(Result.load(outcome.path))
    talker(outcome.event())
    return outcome.exit_code


def _job(path: Path, talker: Talker) -> Job:
    """Return the job in a job file, or the one made from a scientific file."""
    from gewu.jobs.job import Job

    if path.suffix == ".toml":
        return Job.load(path)
    from gewu.jobs.recognise import job_from

    job, said = job_from(path)
    talker.say(said)
    return job


def _list(options: argparse.Namespace) -> int:
    from gewu.jobs.engines import engine_names, load_engine

    rows = [{"engine": name, "summary": load_engine(name).summary} for name in engine_names()]
    rows += [{"example": name, "title": _title(path)} for name, path in _examples().items()]
    _print_rows(rows, options.json)
    return 0


def _show(options: argparse.Namespace) -> int:
    from gewu.jobs.record import REPORT
    from gewu.jobs.result import Result

    result = Result.load(options.result)
    if options.open:
        import webbrowser

        if REPORT not in result.manifest["files"]:
            raise InputError("this run has not made a report yet", file=result.path, value=result.state)
        webbrowser.open((result.path / REPORT).resolve().as_uri())
        return 0
    if options.json:
        numbers = {name: vars(number) for name, number in result.numbers.items()}
        facts = {"result": str(result.path), "state": result.state, "converged": result.converged, "numbers": numbers}
        print(json.dumps(facts | {"arrays": list(result.arrays), "timings_s": result.manifest["timings_s"]}, ensure_ascii=False))
        return 0
    print(f"{result.path}: {result.manifest['engine']}, {result.state}", file=sys.stderr)
    _print_numbers(result)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from gewu.core.schema import json_schema, markdown_table
    from gewu.jobs.engines import load_engine
    from gewu.jobs.job import JobOptions

    config = load_engine(options.engine).config if options.engine else JobOptions
    print(json.dumps(json_schema(config), ensure_ascii=False) if options.json else markdown_table(config).rstrip("\n"))
    return 0


def _examples() -> dict[str, Path]:
    """Return the example jobs by name: shipped in the package, or in the source tree beside it."""
    here = Path(__file__).resolve().parent
    folder = next((path for path in (here / "examples", here.parents[1] / "examples") if path.is_dir()), here)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _title(path: Path) -> str:
    import tomllib

    return str(tomllib.loads(path.read_text(encoding="utf-8")).get("job", {}).get("title", ""))


def _print_rows(rows: Iterable[dict[str, Any]], as_json: bool) -> None:
    for row in rows:
        if as_json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            kind, name, text = next(iter(row)), *row.values()
            print(f"{kind:<8} {name:<16} {text}")


def _print_numbers(result: Result) -> None:
    """Print the numbers as a table aligned at the decimal point."""
    from gewu.jobs.report import shown

    rows = [(name, shown(number.value, number.unit), number) for name, number in result.numbers.items()]
    wide = max((len(name) for name, _, _ in rows), default=0)
    point = [text.partition(".")[0] for _, text, _ in rows]
    left = max(map(len, point), default=0)
    right = max((len(text) - len(head) for (_, text, _), head in zip(rows, point, strict=True)), default=0)
    for (name, text, number), head in zip(rows, point, strict=True):
        before = " " * (left - len(head))
        unit = "" if number.unit == "1" else number.unit
        flag = "" if number.converged else "  not converged"
        print(f"{name:<{wide}}  {before + text:<{left + right}}  {unit}{flag}".rstrip())
