"""Makes a sequence of steps from a seed."""

from __future__ import annotations

from .draw_bitmaps import BitmapPen
from .draw_services import ServicePen
from .step import Command, Step

# How many steps a sequence has.
LENGTH = 25


class Generator(BitmapPen, ServicePen):
    """Draws steps, and keeps the picture of what they should leave."""

    def sequence(self) -> list[Step]:
        """All steps."""
        # Something to work on.
        for name in ("top.qcow2", "other.qcow2", "empty.qcow2"):
            if self.chance(0.8):
                self.add_image_of(name)
        actions = [*self.node_actions(), *self.job_actions(), *self.bitmap_actions(), *self.service_actions()]
        weights = [weight for weight, _ in actions]
        while len(self.steps) < LENGTH:
            self.rng.choices([action for _, action in actions], weights)[0]()
        # Who was slow and is paused now has copied as much as it could until then.
        if any(job.halfway and job.paused for job in self.world.jobs.values()):
            self.world.partial = True
        # The end of a daemon does not wait for those that are behind.
        for job in list(self.world.jobs.values()):
            if job.behind:
                for verb in ("resume", "cancel"):
                    self.steps.append(self.world.step(Command(f"block-job-{verb}", {"device": job.id})))
        return self.steps

    @property
    def partial(self) -> bool:
        """Whether a job ended on its way, so that its target may hold any part of what it copied."""
        return self.world.partial
