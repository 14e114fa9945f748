"""The web address: metrics over HTTP, and what is refused."""

from __future__ import annotations

import http.client
import os
import re
import socket
import stat
from typing import Mapping

from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

OWN = "the rival has no web address"

SAMPLE = re.compile(r'([a-z_]+)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'([a-z_]+)="([^"\\]*)"')


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@blockd_only(OWN)
class Metrics(QMPTestCase):
    """--web at a unix socket."""

    def ask(self, path: str, headers: Mapping[str, str] = {}) -> tuple[int, str]:
        """Status and body of an answer."""
        connection = UnixConnection(self.path("web"))
        try:
            connection.request("GET", path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples, by name and labels."""
        status, text = self.ask("/metrics")
        self.assertEqual(status, 200, text)
        samples = {}
        for line in text.splitlines():
            if not line.startswith("blockd_"):
                continue
            match = SAMPLE.fullmatch(line)
            assert match, line
            samples[match[1], frozenset(LABEL.findall(match[2] or ""))] = float(match[3])
        return samples

    def value(self, name: str, **labels: str) -> float:
        """The one sample of that name with these labels, and maybe others."""
        found = [v for (n, l), v in self.scrape().items() if n == name and l >= set(labels.items())]
        self.assertEqual(len(found), 1, (name, labels))
        return found[0]

    def test_values_of_an_export_and_a_job(self) -> None:
        self.need_libnbd()
        source = self.filled_image("s.qcow2", self.random_bytes(MiB))
        target = self.create_image("t.qcow2", MiB)
        self.launch("--web", "unix:" + self.path("web"))
        self.assertEqual(stat.S_IMODE(os.stat(self.path("web")).st_mode) & 0o077, 0)
        self.add_node("disk", source)
        self.add_node("target", target)
        self.start_nbd()
        self.export("disk")
        guest = self.guest("disk")
        guest.write(0, b"x" * (64 * KiB))
        guest.read(0, 4 * KiB)
        self.assertEqual(self.value("blockd_node_info", node="disk", driver="qcow2", read_only="false"), 1)
        self.assertEqual(self.value("blockd_node_size_bytes", node="disk"), MiB)
        self.assertEqual(self.value("blockd_operations_total", kind="export", node="disk", op="write"), 1)
        self.assertEqual(self.value("blockd_operation_bytes_total", kind="export", node="disk", op="write"), 64 * KiB)
        self.assertEqual(self.value("blockd_operation_errors_total", kind="export", node="disk", op="write"), 0)
        self.assertEqual(self.value("blockd_operation_bytes_total", kind="export", node="disk", op="read"), 4 * KiB)
        self.assertEqual(self.value("blockd_export_info", node="disk", type="nbd", shutting_down="false"), 1)
        self.assertEqual(self.value("blockd_export_clients", type="nbd"), 1)
        self.assertEqual(self.value("blockd_nbd_connections"), 1)
        hits = self.value("blockd_node_cache_lookups_total", node="disk", cache="l2", result="hit")
        misses = self.value("blockd_node_cache_lookups_total", node="disk", cache="l2", result="miss")
        self.assertGreater(hits + misses, 0)

        self.qmp.cmd(
            "blockdev-backup", device="disk", target="target", sync="full", job_id="job0", auto_finalize=False
        )
        self.wait_status("job0", "pending")
        self.assertEqual(self.value("blockd_job_info", job="job0", type="backup", status="pending"), 1)
        self.assertEqual(self.value("blockd_job_current_progress", job="job0"), MiB)
        self.assertEqual(self.value("blockd_job_final_progress", job="job0"), MiB)
        self.assertEqual(self.value("blockd_job_failed", job="job0"), 0)
        self.assertEqual(self.value("blockd_qmp_commands_total", command="blockdev-backup", outcome="ok"), 1)
        self.assertGreaterEqual(self.value("blockd_graph_steps_total"), 4)
        self.assert_qmp_error("Job not found", "job-dismiss", {"id": "none"})
        self.assertEqual(self.value("blockd_qmp_commands_total", command="job-dismiss", outcome="failed"), 1)
        self.qmp.cmd("job-finalize", id="job0")
        self.wait_status("job0", "null")
        self.assertFalse([key for key in self.scrape() if ("job", "job0") in key[1]])
        guest.close()

    def test_what_is_refused(self) -> None:
        self.launch("--web", "unix:" + self.path("web"))
        self.assertEqual(self.ask("/metrics")[0], 200)
        self.assertEqual(self.ask("/")[0], 404)
        self.assertEqual(self.ask("/qmp")[0], 404)
        self.assertEqual(self.ask("/metrics", {"Origin": "http://evil.example"})[0], 403)

    def test_the_socket_goes_with_the_daemon(self) -> None:
        daemon = self.launch("--web", "unix:" + self.path("web"))
        self.assertEqual(self.ask("/metrics")[0], 200)
        daemon.quit()
        self.assertFalse(os.path.exists(self.path("web")))
