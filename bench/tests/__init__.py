"""Tests of the benchmark's own arithmetic and of how it reads others' output."""
