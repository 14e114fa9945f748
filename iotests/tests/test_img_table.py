"""`blockd img` beside qemu-img, by a table: the same arguments, the same exit code, words, output and images."""

from __future__ import annotations

import shlex
import subprocess

from iotests.harness import images
from iotests.tests.test_img import BLOCKD, ImgCase

# What the rival says besides, of every mistake in the command line.
TRY = "Try 'qemu-img --help' for more information"


class Table(ImgCase):
    """Rows are arguments, as a shell takes them. Each runs in a fresh copy of the images."""

    def setUp(self) -> None:
        super().setUp()
        self.chain()
        for name, text in (("key", "123456"), ("key2", "other")):
            (self.images / name).write_text(text)
        (self.images / "odd.raw").write_bytes(bytes(range(250)) * 4)
        (self.images / "empty.raw").write_bytes(b"")

    def luks(self) -> None:
        """luks.img, and enc.qcow2, which has the same password."""
        secret = ["--object", "secret,id=s,file=key"]
        for arguments in (
            ["-f", "luks", "-o", "key-secret=s,iter-time=10", "luks.img", "1M"],
            ["-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "enc.qcow2", "1M"],
        ):
            # qemu-img takes seconds to find out how fast the machine is, and may not be able to.
            subprocess.run([BLOCKD, "img", "create", "-q", *secret, *arguments], cwd=self.images, check=True)

    def rows(self, text: str) -> None:
        """Each line by both programs."""
        for line in text.strip().splitlines():
            with self.subTest(line=line):
                self.row(line.strip())

    def row(self, line: str) -> None:
        """One line: what is printed, and what has become of the images."""
        words = tuple(shlex.split(line))
        for _ in range(images.TRIES):
            theirs = self.run_in(self.theirs, ["qemu-img"], words)
            if images.BUSY not in theirs[2]:
                break
        else:
            print(f"{self.id()}: qemu-img cannot measure its computing time now: {line}")
            return
        ours = self.run_in(self.ours, [BLOCKD, "img"], words)
        self.assertEqual(ours[:2], theirs[:2], (line, ours[2], theirs[2]))
        # Where their lines end is not compared, nor what a program is called.
        said = theirs[2].replace(TRY, "").replace("qemu-img ", "blockd img ")
        self.assertEqual(ours[2].split(), said.split())
        names = [sorted(file.name for file in folder.iterdir()) for folder in (self.ours, self.theirs)]
        self.assertEqual(*names)
        for name in names[0]:
            self.same_file(name)

    def same_file(self, name: str) -> None:
        """Both have left it alone, or made the same image of it."""
        before = self.images / name
        ours, theirs = self.ours / name, self.theirs / name
        content = ours.read_bytes()
        if before.exists() and content == before.read_bytes():
            if theirs.read_bytes() == content:
                return
        if content.startswith(b"LUKS"):  # keys and salts are anybody's
            slots = [self.slots(str(path)) for path in (ours, theirs)]
            self.assertEqual(*slots)
        elif images.info(str(ours)).get("encrypted"):
            slots = [self.slots(str(path)) for path in (ours, theirs)]
            self.assertEqual(*slots)
        else:
            self.same_image(name)

    def slots(self, path: str) -> tuple[int, list[bool]]:
        """The length of an encrypted disk, and which of its key slots are in use."""
        info = images.info(path)
        data = info["format-specific"]["data"]
        return info["virtual-size"], [slot["active"] for slot in data.get("encrypt", data)["slots"]]

    def test_create(self) -> None:
        self.rows(
            """
            create
            create n.raw 1M 2M
            create n.raw 0
            create n.raw 1
            create n.raw 513
            create n.raw x
            create n.raw 8E
            create -f raw -o preallocation=falloc n.raw 1000
            create -f raw -o preallocation=full,nocow=on n.raw 1M
            create -f raw -o extent_size_hint=2M n.raw 1M
            create -f raw -o cluster_size=4k n.raw 1M
            create -f raw -b base.qcow2 -F qcow2 n.raw
            create -f raw -F qcow2 n.raw 1M
            create -f qcow2 -o size=1M n.qcow2 2M
            create -f qcow2 -o size=x n.qcow2
            create -f qcow2 -o lazy_refcounts=maybe n.qcow2 1M
            create -f qcow2 -o cluster_size=4M n.qcow2 1M
            create -f qcow2 -o cluster_size=2M,refcount_bits=64 n.qcow2 1M
            create -f qcow2 -o refcount_bits=1,cluster_size=4k n.qcow2 100000
            create -f qcow2 -o extended_l2=on,cluster_size=4k n.qcow2 1M
            create -f qcow2 -o compat=0.10,lazy_refcounts=on n.qcow2 1M
            create -f qcow2 -o data_file=n.data,compat=0.10 n.qcow2 1M
            create -f qcow2 -o data_file=n.data,data_file_raw=on -b base.qcow2 -F qcow2 n.qcow2
            create -f qcow2 -o data_file_raw=on n.qcow2 1M
            create -f qcow2 -u -b missing n.qcow2 1M
            create -f qcow2 -b n.qcow2 -F qcow2 n.qcow2 1M
            create -f qcow2 -b base.qcow2 -F qcow2 base.qcow2
            create -f qcow2 -b '' -F qcow2 n.qcow2 1M
            create -f qcow2 -b base.qcow2 -o backing_file=top.qcow2 -F qcow2 n.qcow2
            create -f qcow2 nodir/n.qcow2 1M
            create -f nonsense -o help n.raw
            create -f luks n.img 1M
            create -f qcow2 n.qcow2 1
            create -f qcow2 n.qcow2 9E
            create -f qcow2 n.qcow2 7E
            create n.raw 16E
            create -f raw -o nocow n.raw 1M
            create -f raw -o size n.raw
            create -f qcow2 -o lazy_refcounts n.qcow2 1M
            create -f qcow2 -o lazy_refcounts=on,nolazy_refcounts n.qcow2 1M
            create -f qcow2 -o extended_l2,cluster_size=64k n.qcow2 1M
            create -f qcow2 -o compat n.qcow2 1M
            create -f qcow2 -o refcount_bits n.qcow2 1M
            create -f qcow2 -o '' n.qcow2 1M
            create -f qcow2 -o , n.qcow2 1M
            create -f qcow2 -o cluster_size=4k, n.qcow2 1M
            create -f qcow2 -o ,cluster_size=4k n.qcow2 1M
            create -f blkverify n.raw 1M
            create -f qcow2 file:n.qcow2 1M
            create -f qcow2 nope:n.qcow2 1M
            create -f qcow2 ./a:n.qcow2 1M
            create --help-me
            create -1
            create --object secret,id=s,file=missing -f luks -o key-secret=s n.img 1M
            """
        )

    def test_a_backing_file_is_not_read_to_create(self) -> None:
        self.luks()
        self.good("create", "-f", "qcow2", "-b", "enc.qcow2", "-F", "qcow2", "n.qcow2")

    def test_convert(self) -> None:
        self.rows(
            """
            convert -O raw -B base.qcow2 top.qcow2 n.raw
            convert -O raw -B base.qcow2 -F qcow2 top.qcow2 n.raw
            convert -O raw -F qcow2 top.qcow2 n.raw
            convert -O raw -o backing_file=base.qcow2 top.qcow2 n.raw
            convert -O qcow2 -F qcow2 top.qcow2 n.qcow2
            convert -O qcow2 -o size=x base.qcow2 n.qcow2
            convert --image-opts -f qcow2 driver=qcow2,file.filename=base.qcow2 n.raw
            convert -n --target-image-opts -O qcow2 base.qcow2 driver=qcow2,file.filename=other.qcow2
            convert -m x base.qcow2 n.raw
            convert -m 3x base.qcow2 n.raw
            convert -l one -O raw -f raw plain.raw n.raw
            convert -p -f raw -O raw empty.raw n.raw
            """
        )

    def test_dd(self) -> None:
        self.rows(
            """
            dd if=odd.raw of=n.raw bs=x
            dd if=odd.raw of=n.raw bs=0
            dd if=odd.raw of=n.raw bs=2G
            dd if=odd.raw of=n.raw count=x
            dd if=odd.raw of=n.raw skip=9E
            dd -O nonsense if=odd.raw of=n.raw
            """
        )

    def test_amend(self) -> None:
        self.luks()
        one = "amend --object secret,id=s,file=key --object secret,id=n,file=key2"
        luks = "--image-opts driver=luks,key-secret=s,file.filename=luks.img"
        qcow2 = "--image-opts driver=qcow2,encrypt.key-secret=s,file.filename=enc.qcow2"
        self.rows(
            f"""
            {one} -o state=active,new-secret=n,iter-time=10 {luks}
            {one} -o state=active,new-secret=n,iter-time=10,keyslot=3 {luks}
            {one} -o state=active,new-secret=n,keyslot=0 {luks}
            {one} -o state=inactive,keyslot=0 {luks}
            {one} -o state=inactive,keyslot=9 {luks}
            {one} -o state=inactive,old-secret=s {luks}
            {one} --force -o state=inactive,old-secret=s {luks}
            {one} -o state=inactive {luks}
            {one} -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10 {qcow2}
            {one} -o encrypt.state=inactive,encrypt.keyslot=0 {qcow2}
            amend -o size=8M base.qcow2
            amend -o size=8M,lazy_refcounts=off,compat=1.1 base.qcow2
            amend -o backing_file=base.qcow2,backing_fmt=qcow2 top.qcow2
            amend -o backing_file=x,backing_fmt=qcow2 base.qcow2
            amend -o compat=0.42 base.qcow2
            amend -o cluster_size=4k base.qcow2
            amend -o nonsense=4k base.qcow2
            amend -o size=x base.qcow2
            amend -o data_file=x base.qcow2
            amend -o data_file_raw=on base.qcow2
            amend base.qcow2
            amend -o '' base.qcow2
            amend -o size base.qcow2
            amend -p -o size=8M base.qcow2
            amend -o size=8M
            amend -o size=8M missing
            amend -f raw -o size=8M plain.raw
            amend -f raw -o help
            amend -f nonsense -o help
            amend -t nonsense -o size=8M base.qcow2
            """
        )

    def test_amend_keys(self) -> None:
        secrets = "--object secret,id=s,data=hunter --object secret,id=n,data=new --object secret,id=w,data=wrong"

        def blockd(*words: str) -> None:  # which makes keys at once
            subprocess.run([BLOCKD, "img", words[0], *secrets.split(), *words[1:]], cwd=self.images, check=True)

        blockd("create", "-q", "-f", "luks", "-o", "key-secret=s,iter-time=10", "full.luks", "1M")
        blockd("create", "-q", "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s", "aes.qcow2", "1M")
        opened = "--image-opts driver=luks,key-secret=s,file.filename=full.luks"
        for _ in range(7):
            blockd("amend", "-o", "state=active,new-secret=n,iter-time=10", *opened.split())
        one = f"amend {secrets}"
        self.rows(
            f"""
            {one} -o state=active,new-secret=n,iter-time=10 {opened}
            {one} -o state=active,new-secret=n,iter-time=10,keyslot=3 {opened}
            {one} -o state=active,new-secret=n,iter-time=10,keyslot=8 {opened}
            {one} -o state=active,new-secret=n,iter-time=10,keyslot=-1 {opened}
            {one} -o state=active,new-secret=none,force,keyslot=3 {opened}
            {one} --force -o state=active,new-secret=none,keyslot=3 {opened}
            {one} -o state=active,new-secret=n,keyslot=x {opened}
            {one} -o state=active,old-secret=n,new-secret=n {opened}
            {one} -o state=active {opened}
            {one} -o state=inactive,keyslot=3,old-secret=w {opened}
            {one} -o state=inactive,keyslot=3,old-secret=n {opened}
            {one} -o state=inactive,old-secret=none {opened}
            {one} -o state=inactive,old-secret=w {opened}
            {one} -o state=inactive,old-secret=n {opened}
            {one} -o state=inactive,new-secret=n {opened}
            {one} -o state=inactive,keyslot=0,iter-time=3 {opened}
            {one} -o state=maybe {opened}
            {one} -o new-secret=n {opened}
            {one} -o state=inactive,keyslot=0 full.luks
            {one} -o state=inactive,keyslot=0 --image-opts driver=luks,key-secret=w,file.filename=full.luks
            {one} -o encrypt.state=active,encrypt.new-secret=n base.qcow2
            {one} -o encrypt.state=active,encrypt.new-secret=n --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=aes.qcow2
            """
        )

    def test_amend_of_the_layout(self) -> None:
        for name, options in (("v2.qcow2", "compat=0.10"), ("narrow.qcow2", "refcount_bits=8,extended_l2=on")):
            self.make(name, "-f", "qcow2", "-o" + options, "4M")
            self.write(name, "write -P 6 100k 200k")
        self.rows(
            """
            amend -o compat=0.10 base.qcow2
            amend -o compat=0.10 top.qcow2
            amend -o compat=0.10,lazy_refcounts=on base.qcow2
            amend -o compat=0.10,size=8M base.qcow2
            amend -o compat=1.1,lazy_refcounts=on,refcount_bits=64,size=8M v2.qcow2
            amend -o lazy_refcounts=on v2.qcow2
            amend -o refcount_bits=8 v2.qcow2
            amend -o refcount_bits=8 top.qcow2
            amend -o refcount_bits=7 top.qcow2
            amend -o refcount_bits=16 narrow.qcow2
            amend -o compat=0.10 narrow.qcow2
            """
        )

    def test_help_lists_the_options(self) -> None:
        def listed(output: str) -> list[str]:
            return [line.split(" - ")[0].strip() for line in output.splitlines() if line.startswith("  ")]

        # The first is 7.2's alone, which is deprecated. The others have come since.
        but = {"detached-header=<bool (on/off)>"}
        late = {"luks": {"preallocation=<str>"}}
        for line in (
            "create -o help",
            "create -f luks -o help",
            "create -f qcow2 -o help",
            "create -f qcow2 -o ? n.qcow2 1M",
            "create -f raw -o size=1M,help n.raw",
            "convert -O qcow2 -o help base.qcow2 n.qcow2",
            "amend -f luks -o help",
            "amend -o help base.qcow2",
        ):
            with self.subTest(line=line):
                theirs = self.run_in(self.theirs, ["qemu-img"], tuple(line.split()))
                ours = self.run_in(self.ours, [BLOCKD, "img"], tuple(line.split()))
                self.assertEqual((ours[0], ours[2]), (theirs[0], theirs[2]))
                without = but | late.get(line.split()[2], set())
                self.assertEqual(set(listed(ours[1])) - without, set(listed(theirs[1])) - without)
                self.assertFalse((self.ours / "n.qcow2").exists())

    def test_resize(self) -> None:
        self.rows(
            """
            resize
            resize plain.raw
            resize -f raw plain.raw x
            resize -f raw plain.raw 4M
            resize -f raw plain.raw +1M
            resize -f raw plain.raw -1M
            resize -f raw --shrink plain.raw -5M
            resize -f raw --preallocation=full plain.raw 4M
            resize -f raw --preallocation=full plain.raw 5M
            resize -f raw --preallocation=metadata plain.raw 5M
            resize -f raw --preallocation=x plain.raw 5M
            resize --image-opts driver=raw,size=1M,file.filename=plain.raw 5M
            resize base.qcow2 5000001
            resize --preallocation=metadata base.qcow2 5M
            """
        )

    def test_snapshot(self) -> None:
        subprocess.run(["qemu-img", "snapshot", "-c", "one", "base.qcow2"], cwd=self.images, check=True)
        self.write("base.qcow2", "write -P 7 0 64k")
        self.rows(
            """
            snapshot
            snapshot -d 1 base.qcow2
            snapshot -d nope base.qcow2
            snapshot -a nope base.qcow2
            snapshot -a 1 base.qcow2
            snapshot -a one -d one base.qcow2
            snapshot -d one base.qcow2
            """
        )

    def test_an_id_comes_before_a_name(self) -> None:
        subprocess.run(["qemu-img", "snapshot", "-c", "2", "base.qcow2"], cwd=self.images, check=True)
        self.write("base.qcow2", "write -P 7 0 64k")
        subprocess.run(["qemu-img", "snapshot", "-c", "1", "base.qcow2"], cwd=self.images, check=True)
        self.write("base.qcow2", "write -P 8 0 64k")
        self.rows(
            """
            snapshot -a 1 base.qcow2
            snapshot -a 2 base.qcow2
            snapshot -d 1 base.qcow2
            snapshot -d 2 base.qcow2
            """
        )

    def test_rebase(self) -> None:
        self.rows(
            """
            rebase -b other.qcow2 -F qcow2 base.qcow2
            rebase -b plain.raw -F raw base.qcow2
            rebase -b '' base.qcow2
            rebase -b other.qcow2 top.qcow2
            rebase -u -b other.qcow2 top.qcow2
            rebase -b other.qcow2 -F nonsense top.qcow2
            rebase -T nonsense -b '' top.qcow2
            rebase top.qcow2
            rebase -U -b other.qcow2 -F qcow2 top.qcow2
            """
        )

    def test_bitmap(self) -> None:
        subprocess.run(["qemu-img", "bitmap", "--add", "base.qcow2", "b0"], cwd=self.images, check=True)
        self.rows(
            """
            bitmap --add base.qcow2
            bitmap --add -g x base.qcow2 b
            bitmap --add -g 3k base.qcow2 b
            bitmap --add -g 4G base.qcow2 b
            bitmap -g 64k --remove base.qcow2 b0
            bitmap -b other.qcow2 --clear base.qcow2 b0
            bitmap -F qcow2 --clear base.qcow2 b0
            bitmap --add --merge b0 base.qcow2 n
            bitmap --add --disable -g 128k base.qcow2 b
            """
        )

    def test_inspect(self) -> None:
        self.rows(
            """
            info
            info --image-opts driver=raw,file.filename=plain.raw,offset=5M
            info --image-opts driver=raw,file.filename=plain.raw,offset=1M,size=4M
            info --image-opts driver=raw,file.filename=plain.raw,offset=512,size=1000
            info --image-opts driver=raw,file.filename=plain.raw,size=x
            info --image-opts driver=raw,backing=base.qcow2,file.filename=plain.raw
            info --image-opts driver=raw,backing=,file.filename=plain.raw
            info --image-opts driver=qcow2,backing=,file.filename=top.qcow2
            info 'json:{"driver":"qcow2","backing":"","file":{"driver":"file","filename":"top.qcow2"}}'
            info 'json:{"driver":"raw","backing":"x","file":{"driver":"file","filename":"plain.raw"}}'
            info 'json:{'
            info --image-opts driver=blkdebug,image.driver=file,image.filename=plain.raw
            info blkdebug::base.qcow2
            map --image-opts driver=raw,file.filename=plain.raw,offset=1M,size=128k
            map -s x top.qcow2
            map odd.raw
            map empty.raw
            check -T nonsense base.qcow2
            check -r nonsense base.qcow2
            check --image-opts -f qcow2 driver=qcow2,file.filename=base.qcow2
            compare -T nonsense base.qcow2 top.qcow2
            compare base.qcow2
            compare odd.raw empty.raw
            measure -O qcow2 --size 1G base.qcow2
            measure -O qcow2 -o nonsense=3 --size 1G
            measure -O qcow2 --size 8E
            measure -O qcow2 --size 7E
            measure -O qcow2 --size 2P
            measure -O qcow2 --size 3P
            measure -O qcow2 -o extended_l2 --size 1P
            measure -O qcow2 -o extended_l2 --size 1026T
            measure -O qcow2 -o nolazy_refcounts --size 1G
            nonsense
            measure -O qcow2 odd.raw
            """
        )
