"""The reports of `qchain verify --json` match cli/verify_report.schema.json, and the schema is strict enough."""

from __future__ import annotations

import json
import subprocess
import unittest
from pathlib import Path
from typing import Any

from chain import ChainTest
from harness import QCHAIN, patch

SCHEMA = Path(__file__).parents[2] / "cli" / "verify_report.schema.json"
# Debian's package is for Debian's Python, whichever runs this.
VALIDATE = """import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft7Validator.check_schema(schema)
for error in jsonschema.Draft7Validator(schema).iter_errors(json.load(sys.stdin)):
    print("/".join(map(str, error.absolute_path)), error.message[:500])
    for part in error.context: print("   ", part.schema_path, part.message[:300])
"""


def schema_errors(report: dict[str, Any]) -> str:
    return subprocess.run(["/usr/bin/python3", "-c", VALIDATE, SCHEMA], input=json.dumps(report), text=True, check=True,
                          stdout=subprocess.PIPE).stdout


class Report(ChainTest):

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def report(self, *argv: str, expect: int = 0) -> dict[str, Any]:
        report = self.qchain("verify", *argv, "--json", expect=expect).json
        self.assertEqual(schema_errors(report), "")
        return report

    def rot(self) -> None:
        """A byte of data in the newest layer, and one in a lower layer."""
        for image in ("check3.qcow2", "check1.qcow2"):
            [mapping, *_] = [m for m in self.qchain("chaininfo", image, "--map", "--json").json["map"]
                             if m["layer"] == 0 and m["kind"] == "data"]
            at = mapping["host_offset"] + 5
            patch(self.path(image), at, bytes([self.path(image).read_bytes()[at] ^ 1]))

    def test_from_manifests(self) -> None:
        report = self.report("check3.qcow2")
        self.assertEqual([layer["content"]["damaged_bytes"] for layer in report["layers"]], [0, 0, 0])
        self.assertTrue(all(layer["manifest"]["root_follows"] for layer in report["layers"]))

    def test_rot(self) -> None:
        self.rot()
        report = self.report("check3.qcow2", expect=1)
        self.assertEqual({(d["layer"], d["cause"]) for d in report["differences"] if d["manifest_of_layer"] == d["layer"]},
                         {(0, "rotted"), (2, "rotted")})
        with self.live() as uri:
            report = self.report("check3.qcow2", "--against", uri, expect=1)
        self.assertEqual({d["cause"] for d in report["differences"]}, {"rotted"})

    def test_parts_and_their_sum(self) -> None:
        for part in (1, 2):
            document = self.report("check3.qcow2", "--sample", f"{part}/2", expect=4)
            self.path(f"{part}.json").write_text(json.dumps(document))
        self.report("--combine", "1.json", "2.json")
        self.assertEqual(self.report("--combine", "1.json", expect=4)["parts_missing"], [2])

    def test_the_live_side(self) -> None:
        with self.live() as uri:
            self.assertEqual(self.report("check3.qcow2", "--against", uri)["different_bytes"], 0)
            self.report("check3.qcow2", "--against", uri, "--manifest-only", expect=4)
            self.report("check2.qcow2", "--against", uri, expect=1)

    def test_sealing(self) -> None:
        self.path("check1.qcow2.manifest").unlink()
        self.report("check3.qcow2", expect=4)
        self.report("check3.qcow2", "--seal")
        self.report("check3.qcow2")

    def test_failures(self) -> None:
        self.report("nothing.qcow2", expect=3)
        self.report("check3.qcow2", "--sample", "3/2", expect=2)
        self.path("check2.qcow2").unlink()
        self.report("check3.qcow2", expect=3)

    def test_invalid_reports(self) -> None:
        report = self.report("check3.qcow2")
        for field in ("verdicts", "layers", "read_bytes", "selection"):
            self.assertNotEqual(schema_errors({k: v for k, v in report.items() if k != field}), "", field)
        self.assertNotEqual(schema_errors(report | {"version": 2}), "")
        self.assertNotEqual(schema_errors(report | {"differences": [{"offset": 0}]}), "")


if __name__ == "__main__":
    unittest.main()
