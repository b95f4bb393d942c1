"""A campaign as JUnit XML, which continuous integration systems show: one test case a run."""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ElementTree
from typing import Final

from ldmd.campaign.report import Report, tell_failure
from ldmd.campaign.runner import RunResult

NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


def write_junit(report: Report) -> bytes:
    """The file's content."""
    began = datetime.datetime.fromtimestamp(report.began_unix_ms / 1000, datetime.UTC)
    suite = ElementTree.Element(
        "testsuite",
        name=f"ldm-faults campaign {report.hypervisor}",
        tests=str(len(report.results)),
        failures=str(len(report.failed)),
        errors="0",
        skipped="0",
        time=f"{report.seconds:.3f}",
        timestamp=began.strftime("%Y-%m-%dT%H:%M:%S"),
    )
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"seed": str(report.seed), "command": " ".join(report.command), **report.versions}
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    for result in report.results:
        suite.append(_write_run(report.hypervisor, result))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _write_run(hypervisor: str, result: RunResult) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=f"campaign.{hypervisor}",
        name=_clean(result.name),
        time=f"{result.seconds:.3f}",
    )
    if not result.held:
        failure = ElementTree.SubElement(case, "failure", message=_clean(result.violations[0]))
        failure.text = _clean("\n".join(tell_failure(result)))
        logs = "\n".join(f"---- {host}\n{text}" for host, text in result.logs.items())
        ElementTree.SubElement(case, "system-out").text = _clean(logs)
    return case


def _clean(text: str) -> str:
    return NOT_XML.sub("�", text)
