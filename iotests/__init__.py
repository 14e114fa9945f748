"""Tests that drive a real storage daemon from outside: QMP in, images and NBD out."""
