"""``shmarray doctor``: the limits of this system that will cause problems for shared arrays, and the remedies."""

import json
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from shmarray.command import facts, judgements, selftest, table, wording
from shmarray.command.judgements import Finding


class Check(NamedTuple):
    """One line of the report: its title, how to get the facts, and how to judge them."""

    title: str
    facts: Callable[[], Any]
    judgement: Callable[..., Finding]

    def finding(self) -> Finding:
        found = self.facts()
        plain = type(found) is tuple  # several figures; a NamedTuple is one
        return self.judgement(*found) if plain else self.judgement(found)


CHECKS = (
    Check("/dev/shm", facts.shared_memory, judgements.shared_memory),
    Check("memory", facts.memory, judgements.memory),
    Check("huge pages, pools", facts.huge_pages, judgements.huge_pages_of_pools),
    Check("huge pages, names", facts.huge_pages, judgements.huge_pages_of_names),
    Check("locked memory", facts.locked_memory, judgements.locked_memory),
    Check("open files", facts.open_files, judgements.open_files),
    Check("mappings", facts.mappings, judgements.mappings),
    Check("systemd RemoveIPC", facts.login, judgements.login),
    Check("start method", facts.start_method, judgements.start_method),
    Check("/proc", facts.proc, judgements.proc),
    Check("memfd_create", facts.memory_without_name, judgements.memory_without_name),
    Check("semaphores", facts.semaphores, judgements.semaphores),
    Check("O_TMPFILE, linkat", facts.name_when_complete, judgements.name_when_complete),
    Check("posix_fallocate", facts.reserving, judgements.reserving),
    Check("hole punching", facts.giving_back, judgements.giving_back),
    Check("SOCK_SEQPACKET", facts.packets, judgements.packets),
    Check("pidfd", facts.ends_of_processes, judgements.ends_of_processes),
    Check("F_SETSIG", facts.killing_with_caller, judgements.killing_with_caller),
    Check("page faults", facts.fault_counters, judgements.fault_counters),
    Check("flock", facts.locking, judgements.locking),
    Check("versions", facts.versions, judgements.versions),
    Check("test: named array", selftest.named_array, judgements.self_test),
    Check("test: Pool", selftest.pool, judgements.self_test),
)

_VERDICT_WIDTH = len("will bite")
_TITLE_WIDTH = max(len(check.title) for check in CHECKS)
_INDENT = " " * (_VERDICT_WIDTH + _TITLE_WIDTH + 4)


def run(arguments: Namespace) -> int:
    findings = []
    for check in CHECKS:
        findings.append(check.finding())
        if not arguments.json:  # one by one, because the tests at the end take a second
            print("\n".join(_lines(check.title, findings[-1])), flush=True)
    biting = sum(finding.verdict == "will bite" for finding in findings)
    print(_document(findings) if arguments.json else _verdict(biting))
    return 1 if biting else 0


def _lines(title: str, finding: Finding) -> Iterator[str]:
    start = f"{finding.verdict:<{_VERDICT_WIDTH}}  {title:<{_TITLE_WIDTH}}  "
    width = max(len(_INDENT) + 30, min(table.terminal_width(), 120))
    text = wording.safe(finding.text)
    yield textwrap.fill(text, width, initial_indent=start, subsequent_indent=_INDENT, break_long_words=False)
    # Not wrapped, so that commands can be copied.
    yield from (f"{_INDENT}> {remedy}" for remedy in finding.remedies)


def _verdict(biting: int) -> str:
    if not biting:
        return "\nNothing will bite."
    return f"\n{wording.count(biting, 'thing')} will bite: see the remedies after '>'."


def _document(findings: list[Finding]) -> str:
    checks = [
        {"check": check.title, "verdict": finding.verdict, "text": finding.text, "remedies": list(finding.remedies)}
        for check, finding in zip(CHECKS, findings, strict=True)
    ]
    return json.dumps({"checks": checks, "versions": facts.versions()}, indent=2)
