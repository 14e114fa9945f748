"""blockd measured beside qemu-storage-daemon: the same work, the same images, in turn."""
