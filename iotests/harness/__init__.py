"""What the tests stand on: a QMP client, the daemon under test, images, guests and the runner."""
