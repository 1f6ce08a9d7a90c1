"""A run of post-training in a folder: a log, rollouts token by token, and checkpoints that resume bit for bit."""

import pickle
from pathlib import Path

import torch

from minidsv4.checkpoint import save
from minidsv4.files import atomic_file, writable_folder
from minidsv4.posttrain.objective import Objective
from minidsv4.train.log import Log
from minidsv4.train.loop import Trainer
from minidsv4.train.recipe import Recipe

STATE, LOG = "posttraining.pt", "log.jsonl"


class PostTraining:
    """A policy in training with all that belongs to it, in a folder.

    objective  its policy is in the state from which the run begins
    folder     made if need be; one that holds a run of the same kind is gone on from, bit for bit
    about      what decides the run, as JSON holds it: names, seeds, sizes
    every      steps from one checkpoint to the next, a multiple of the updates of a round
    raises     ValueError where the folder holds another run, or a state that cannot be read
    """

    def __init__(self, objective: Objective, recipe: Recipe, folder: str | Path, about: dict, every: int = 10):
        self.objective, self.folder, self.every = objective, writable_folder(folder), every
        self.about = about | {"recipe": vars(recipe) | {"mtp_weights": list(recipe.mtp_weights)}}
        self.trainer = Trainer(objective, objective.batch_at, recipe, after=self.after)
        state = self.kept()
        if state is not None:
            self.objective.policy.load_state_dict(state["policy"])
            self.trainer.load_state_dict(state["trainer"])

    def kept(self) -> dict | None:
        """The state that the folder keeps, if it keeps one."""
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            state = torch.load(path, weights_only=True)
            about = state["about"]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"post-training: {path} cannot be read ({error}); remove it to begin anew") from error
        if about != self.about:
            names = sorted(n for n in about.keys() | self.about.keys() if about.get(n) != self.about.get(n))
            raise ValueError(
                f"post-training: {path} is of another run ({', '.join(names)} differ); give another folder"
            )
        return state

    def run(self) -> bool:
        """Learn to the end of the recipe, and save the policy; False where Ctrl-C asked for an end, after a checkpoint
        or none, from which the next run goes on.
        """
        self.log = Log(self.folder / LOG, self.trainer.step)
        finished = self.trainer.train()
        if finished:
            self.keep()
            save(self.objective.policy, self.folder)
        return finished

    def after(self, record: dict) -> None:
        """Log a step, and keep the state where it is due."""
        self.log.write(record | self.objective.told())
        if self.trainer.step % self.every == 0:
            self.keep()

    def keep(self) -> None:
        """Write all that is needed to go on; what was kept before stays whole until this is."""
        state = {"about": self.about, "policy": self.objective.policy.state_dict()}
        with atomic_file(self.folder / STATE) as scratch:
            torch.save(state | {"trainer": self.trainer.state_dict()}, scratch)
