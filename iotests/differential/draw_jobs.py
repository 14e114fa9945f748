"""Draws steps that start jobs, and verbs for them."""

from __future__ import annotations

from .pen import APT, Actions, Pen
from .step import Command, Message
from .world import SIZE, Job, MiB


class JobPen(Pen):
    """Jobs."""

    def job_actions(self) -> Actions:
        """What can be drawn here."""
        return (
            (9, self.backup),
            (9, self.mirror),
            (9, self.commit),
            (9, self.stream),
            (5, self.create),
            (2, self.amend),
            (20, self.job_verb),
        )

    def job_arguments(self, kind: str, arguments: Message, *, slow: bool) -> Job:
        """What all jobs take."""
        job = Job(self.world.new_name("job"), kind, slow, halfway=slow)
        arguments["job-id"] = job.id
        if slow:
            arguments["speed"] = 1
        # The rival's stream that is kept often does not survive.
        if self.chance(0.05 if kind == "stream" else 0.25):
            arguments["auto-dismiss"] = False
            job.kept = True
        if self.chance(0.2):
            arguments["auto-finalize"] = False
            job.pending = True
        return job

    def start(self, command: str, kind: str, arguments: Message) -> None:
        """A command that starts a job."""
        node = self.world.nodes.get(arguments["device"])
        # How far a slow one gets is not known, so no bitmap may tell.
        slow = (
            self.chance(0.4)
            and node is not None
            and node.full
            and node.size == SIZE
            and arguments.get("sync", "full") == "full"
            and "bitmap" not in arguments
            and kind in ("backup", "mirror")
        )
        job = self.job_arguments(kind, arguments, slow=slow)
        if kind != "mirror":
            # The name of a filter is no secret, but a job may have none.
            # Whether another one's job settles is not known, so neither must be one that goes on and on.
            if not slow and arguments.get("sync") != "none" and self.chance(0.08):
                resting = [other.id for other in self.world.jobs.values() if not (other.slow or other.endless)]
                arguments["job-id"] = self.rng.choice(["1 bad", "", *resting, *resting])
        job.endless = kind == "backup" and arguments["sync"] == "none"
        active = kind == "commit" and "top-node" not in arguments and "top" not in arguments
        job.ready = kind == "mirror" or active
        if not self.send(command, arguments) or arguments["job-id"] != job.id:
            # What is spoilt may start a job all the same, which must not be waited for in vain.
            sent = self.steps[-1].action
            assert isinstance(sent, Command)
            job.endless = kind == "backup" and sent.arguments.get("sync") == "none"
            if not (slow or job.endless) or sent.arguments["job-id"] != job.id:
                return
        if job.ready or job.endless or job.slow or job.kept or job.pending:
            self.world.jobs[job.id] = job
            self.settle_again()
        if slow:
            # Every drain lets the rival's go on a little, so it must not stay for long.
            for _ in range(self.rng.randrange(3)):
                self.verb(job.id)
            self.hurry(job)

    def hurry(self, job: Job) -> None:
        """An end to a slow job's slowness."""
        if job.slow and job.id in self.world.jobs:
            job.slow = False
            self.steps.append(self.world.step(Command("block-job-set-speed", {"device": job.id, "speed": 0})))

    def backup(self) -> None:
        """blockdev-backup or drive-backup."""
        arguments = self.backup_arguments()
        self.start("drive-backup" if "format" in arguments else "blockdev-backup", "backup", arguments)

    def backup_arguments(self) -> Message:
        """Without a job's id."""
        marked = [node.name for node in self.world.nodes.values() if node.bitmaps]
        source = self.pick(marked if marked and self.chance(0.4) else self.world.tops())
        node = self.world.nodes.get(source)
        arguments: Message = {"device": source, "sync": self.rng.choice(["full", "full", "top", "none", "incremental", "bitmap"])}
        if arguments["sync"] in ("incremental", "bitmap"):
            if node is None or not node.bitmaps:
                if self.chance(0.7):
                    arguments["sync"] = "full"
        if arguments["sync"] in ("incremental", "bitmap") or self.chance(0.3 if node and node.bitmaps else 0.05):
            arguments["bitmap"] = self.rng.choice(node.bitmaps) if node and node.bitmaps else "nobitmap"
            if self.chance(0.8):
                fit = arguments["sync"] == "incremental" and self.chance(0.8)
                arguments["bitmap-mode"] = "on-success" if fit else self.rng.choice(["on-success", "never", "always"])
        elif self.chance(0.03):
            arguments["bitmap-mode"] = "never"
        if arguments["sync"] in ("incremental", "bitmap") and self.chance(0.1):
            del arguments["bitmap"]
        # How much of what is below it belongs to such a filter itself each sees in its own way.
        if arguments["sync"] == "top" and self._within(source, "raw"):
            arguments["sync"] = "full"
        if self.chance(0.1):
            arguments["compress"] = True
        if self.chance(0.2):
            arguments["on-target-error"] = self.rng.choice(["report", "stop", "ignore", "enospc"])
        if self.chance(0.05):
            arguments["x-perf"] = {self.rng.choice(["max-workers", "max-chunk"]): self.rng.choice([0, 1, 64, 65536, -1])}
        if self.chance(0.1):
            arguments["filter-node-name"] = self.rng.choice([self.world.new_name("cbw"), self.world.any_node()])
        if self.chance(0.35):
            arguments["target"] = self.world.new_name("file") + ".qcow2"
            arguments["format"] = "qcow2"
        else:
            arguments["target"] = self.pick(self.world.targets(source))
        # It takes no writes, so that a job that ignores this goes on for ever.
        if arguments.get("on-target-error") == "ignore" and self._within(arguments["target"], "snapshot-access"):
            arguments["on-target-error"] = "report"
        return arguments

    def mirror(self) -> None:
        """blockdev-mirror or drive-mirror."""
        source = self.pick(self.world.writable_tops())
        arguments: Message = {"device": source, "sync": self.rng.choice(["full", "full", "top", "none", "incremental"][: 5 if self.chance(0.3) else 4])}
        # The rival's copies what is below such filters without its backing files.
        self.world.partial = self.world.partial or self._copies_before_writes(source) or self._within(source, "raw")
        if self.chance(0.2):
            arguments["copy-mode"] = self.rng.choice(["write-blocking", "background"])
        if self.chance(0.15):
            arguments["granularity"] = self.rng.choice([65536, 512, 1000, 1 << 27])
        if self.chance(0.1):
            arguments["buf-size"] = self.rng.choice([0, 1, MiB, -1])
        if self.chance(0.35):
            arguments["target"] = self.world.new_name("file") + ".qcow2"
            arguments["format"] = "qcow2"
            if self.chance(0.5):
                arguments["node-name"] = self.world.new_name("mirrored")
            self.start("drive-mirror", "mirror", arguments)
            return
        arguments["target"] = self.pick(self.world.targets(source))
        # The rival writes zeroes over zeroes, so that such a filter copies these.
        self.world.partial = self.world.partial or self._copies_before_writes(arguments["target"])
        if self.chance(0.1):
            arguments["replaces"] = self.rng.choice([source, self.world.any_node()])
        if self.chance(0.1):
            arguments["filter-node-name"] = self.world.new_name("mirrorfilter")
        self.start("blockdev-mirror", "mirror", arguments)

    def _copies_before_writes(self, node: str) -> bool:
        """Whether there should be a copy-before-write filter in a node's chain."""
        return self._within(node, "copy-before-write")

    def _within(self, node: str, driver: str) -> bool:
        """Whether a node of that driver, which has no image of its own, should be in a node's chain."""
        known = [self.world.nodes[name] for name in [node, *self.world.chain(node)] if name in self.world.nodes]
        return any(one.driver == driver and not one.image for one in known)

    def commit(self) -> None:
        """block-commit."""
        device = self.pick([name for name in self.world.tops() if self.world.chain(name)])
        chain = self.world.chain(device)
        arguments: Message = {"device": device}
        if self.chance(0.4):
            arguments["top-node"] = self.pick([device, *chain])
        elif self.chance(0.1):
            arguments["top"] = "mid.qcow2"
        if self.chance(0.6):
            arguments["base-node"] = self.pick(chain[-1:] if self.chance(0.6) else chain)
        elif self.chance(0.1):
            arguments["base"] = "base.qcow2"
        if self.chance(0.1):
            arguments["backing-file"] = "base.qcow2"
        if self.chance(0.03):
            arguments.update({"base": "base.qcow2", "base-node": self.world.any_node()})
        self.start("block-commit", "commit", arguments)

    def stream(self) -> None:
        """block-stream."""
        device = self.pick([name for name in self.world.nodes if self.world.chain(name)])
        chain = self.world.chain(device)
        arguments: Message = {"device": device}
        choice = self.rng.randrange(6)
        if choice < 2:
            arguments["base-node"] = self.pick(chain)
        elif choice == 2:
            arguments["base"] = "base.qcow2"
        elif choice == 3:
            arguments["bottom"] = self.pick(chain)
        if self.chance(0.1):
            arguments["backing-file"] = "base.qcow2"
        if self.chance(0.05):
            arguments.update({"base": "base.qcow2", "base-node": self.world.any_node()})
        if self.chance(0.1):
            arguments["filter-node-name"] = self.world.new_name("streamfilter")
        self.start("block-stream", "stream", arguments)

    def create(self) -> None:
        """blockdev-create of a file, or of an image in a node."""
        taken = [other.id for other in self.world.jobs.values() if not (other.slow or other.endless)]
        again = bool(taken) and self.chance(0.15)
        job = self.rng.choice(taken) if again else self.world.new_name("job")
        if self.chance(0.6):
            options: Message = {"driver": "file", "filename": self.world.new_name("made"), "size": self.rng.choice([0, SIZE, 1000])}
        else:
            # A null device forgets what is written, which only one of the two finds out.
            nodes = [node.name for node in self.world.nodes.values() if node.driver != "null-co"]
            options = {"driver": "qcow2", "file": self.rng.choice([*nodes, "nope"]), "size": self.rng.choice([SIZE, 0, 1000])}
            self.world.partial = True  # an image within a disk: each lays its tables out in its own way
            if self.chance(0.3):
                options["cluster-size"] = self.rng.choice([512, 65536, 3])
        if self.send("blockdev-create", {"job-id": job, "options": options}) and not again:
            self.world.jobs[job] = Job(job, "create", False, kept=True)
            self.settle_again()

    def amend(self) -> None:
        """x-blockdev-amend, which needs what these images do not have."""
        job = self.world.new_name("job")
        images = [node.name for node in self.world.nodes.values() if node.driver == "qcow2"]
        options: Message = {"driver": "qcow2"}
        if self.chance(0.3):
            options["encrypt"] = {"format": "luks", "state": "active", "new-secret": "nosecret"}
        if self.send("x-blockdev-amend", {"job-id": job, "node-name": self.pick(images), "options": options}):
            self.world.jobs[job] = Job(job, "amend", False, kept=True)
            self.settle_again()

    # Verbs.

    def job_verb(self) -> None:
        """A verb for a job, mostly one that brings it on."""
        if not self.world.jobs and self.chance(APT):
            # One that stays, for the verbs that come after.
            self.rng.choice([self.backup, self.mirror, self.commit])()
        self.verb(self.world.any_job())

    def _apt_verb(self, job: Job | None) -> str:
        """What the job should be waiting for."""
        every = ["pause", "resume", "cancel", "complete", "finalize", "dismiss", "set-speed"]
        if job is None or self.chance(0.4):
            return self.rng.choice(every)
        if job.paused:
            return self.rng.choice(["resume", "resume", "pause"])
        if job.slow or job.endless:
            return self.rng.choice(["pause", "cancel", "set-speed"])
        if job.ready:
            return self.rng.choice(["complete", "complete", "cancel", "pause"])
        if job.pending:
            return self.rng.choice(["finalize", "finalize", "cancel"])
        return "dismiss" if job.kept else self.rng.choice(every)

    def verb(self, identity: str) -> None:
        """A verb of the old or the new kind."""
        job = self.world.jobs.get(identity)
        verb = self._apt_verb(job)
        # The rival's mirror does not go as slowly as it is told when it comes out of a pause.
        if job is not None and job.slow and job.kind == "mirror" and verb in ("pause", "resume"):
            verb = "set-speed"
        if verb == "set-speed":
            # A mirror that was not slow from the beginning ends only with what guests write, whose amount is not known.
            mirrors = job is not None and not job.slow and job.kind in ("mirror", "commit")
            speed = self.rng.choice([0, 0, -1] if mirrors else [0, 0, 1, 1, -1])
            if self.send("block-job-set-speed", {"device": identity, "speed": speed}) and job and speed >= 0:
                # What is paused stays where it is, however fast it may be.
                job.slow = speed == 1 and job.slow
                self.settle_again()
            return
        old = self.chance(0.5)
        command = f"block-job-{verb}" if old else f"job-{verb}"
        key = "device" if old and verb not in ("finalize", "dismiss") else "id"
        arguments: Message = {key: identity}
        if verb == "cancel" and old and self.chance(0.3):
            arguments["force"] = self.chance(0.7)
        sent = self.send(command, arguments)
        # Even what is spoilt may still be a cancel, also of one that is to go on fast only after its pause.
        if verb == "cancel" and job is not None and (job.slow or job.halfway and job.paused):
            self.world.partial = True
        if not sent or job is None:
            return
        self._effect(job, verb, hard=not old or bool(arguments.get("force", False)))
        self.settle_again()

    def _effect(self, job: Job, verb: str, *, hard: bool) -> None:
        """What a verb should do."""
        resting = not (job.slow or job.endless)
        if verb == "pause":
            job.paused = True
        elif verb == "resume":
            job.paused = False
        elif verb == "complete" and resting:
            job.ready = False
            self._over(job)
        elif verb == "finalize" and resting and not job.ready:
            job.pending = False
            self._over(job)
        elif verb == "cancel":
            self.world.partial = self.world.partial or job.slow or (hard and job.behind)
            # A soft cancel of a paused job is refused, and it stays as it is.
            if not (job.paused and not hard):
                job.slow = job.endless = job.paused = job.behind = False
                soft = job.ready and not hard and job.pending
                job.ready, job.pending = False, soft
                self._over(job)
        elif verb == "dismiss" and resting and not job.ready and not job.pending:
            # Who is on the way cannot be dismissed.
            job.kept = False
            self._over(job)

    def _over(self, job: Job) -> None:
        """The job goes when it waits for nothing more."""
        if not (job.ready or job.pending or job.kept):
            self.world.jobs.pop(job.id, None)
