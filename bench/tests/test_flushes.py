"""Reading strace's log: which writes a flush covers."""

from __future__ import annotations

import unittest

from bench.flushes import FileLog, judge, read_log
from bench.trial import Window

FOLDER = "/m/run"
IMAGE = "/m/run/t.qcow2"


def window(success: float = 0.0) -> Window:
    """From 10 to 20."""
    return Window(started_at=10, ended_at=20, success_at=success)


class Judgement(unittest.TestCase):
    def test_a_flush_before_the_last_write_covers_it_not(self) -> None:
        audit = judge([FileLog(writes=[11, 13], flushes=[12])], window(15))
        self.assertFalse(audit.flushed_at_success)
        self.assertFalse(audit.flushed_at_end)

    def test_success_and_end_are_told_apart(self) -> None:
        audit = judge([FileLog(writes=[11, 13], flushes=[16])], window(15))
        self.assertIs(audit.flushed_at_success, False)
        self.assertTrue(audit.flushed_at_end)
        self.assertEqual((audit.writes_in_window, audit.flushes_in_window), (2, 1))

    def test_one_unflushed_file_spoils_it(self) -> None:
        audit = judge([FileLog([11], [12]), FileLog([11], [])], window(15))
        self.assertFalse(audit.flushed_at_end)

    def test_writes_outside_of_the_window_do_not_count(self) -> None:
        self.assertTrue(judge([FileLog([5, 25], [])], window(15)).flushed_at_end)

    def test_without_a_report_of_success_nothing_is_said_of_it(self) -> None:
        self.assertIsNone(judge([FileLog([11], [12])], window()).flushed_at_success)


class Log(unittest.TestCase):
    def read(self, *lines: str) -> FileLog:
        """The log of the image."""
        return read_log(lines, [FOLDER]).get(IMAGE, FileLog())

    def test_calls_are_sorted_by_what_they_do(self) -> None:
        log = self.read(
            f'7     11.5 pwritev(9<{IMAGE}>, [{{iov_base=""..., iov_len=65536}}], 1, 327680) = 65536',
            f"8     12.5 fdatasync(9<{IMAGE}>) = 0",
            f"8     13.5 fallocate(9<{IMAGE}>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 0, 65536) = 0",
        )
        self.assertEqual(log, FileLog(writes=[11.5, 13.5], flushes=[12.5]))

    def test_an_interrupted_write_counts_from_its_end_and_a_flush_from_its_beginning(self) -> None:
        log = self.read(
            f'7     11.0 pwrite64(9<{IMAGE}>, ""..., 65536, 327680 <unfinished ...>',
            f"8     12.0 fdatasync(9<{IMAGE}> <unfinished ...>",
            "7     13.0 <... pwrite64 resumed>) = 65536",
            "8     14.0 <... fdatasync resumed>) = 0",
        )
        self.assertEqual(log, FileLog(writes=[13.0], flushes=[12.0]))

    def test_copy_file_range_writes_its_second_file(self) -> None:
        log = self.read(f"7     11.0 copy_file_range(9</m/run/s>, [0], 10<{IMAGE}>, [0], 65536, 0) = 65536")
        self.assertEqual(log.writes, [11.0])

    def test_sockets_and_other_folders_are_left_out(self) -> None:
        lines = [
            '7     11.0 write(4<socket:[12]>, ""..., 10) = 10',
            '7     11.0 write(4</m/running/t>, ""..., 10) = 10',
            "7     12.0 +++ exited with 0 +++",
        ]
        self.assertEqual(read_log(lines, [FOLDER]), {})
