"""The training loop of every network: resumable epochs, with batches drawn while the network trains
on the previous ones.

The batches of an epoch depend only on the seed and the number of the epoch, and the state is
written after each epoch, so that an interrupted training resumes with identical results.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ml.checkpoints import RESUMED, load_arrays, save_arrays
from ml.networks.watching import Watch

AHEAD = 4  # batches that are prepared in advance
Batch = tuple[Any, ...]
"""The arguments of `train_on_batch`: inputs, targets and, optionally, sample weights."""


def run_epochs(
    network: keras.Model,
    *,
    loss: Any,
    loss_weights: Any = None,
    epochs: int,
    batches: int,
    learning_rate: float,
    averaging: float,
    seed: int,
    draw: Callable[[int], Iterable[Batch]],
    state: Path,
    report: Callable[[float, Mapping[str, float]], None],
    watch: Watch | None = None,
) -> None:
    """Train the network with Adam (D. Kingma, J. Ba 2015) and a cosine learning rate schedule that
    decays to zero; afterwards it holds the running average of its weights.

    Many parameters, because these are the differences between five architectures: all are given by
    keyword, and an object that held them would be built only for this call.

    Args:
        network: its outputs match `loss`; non-trainable layers stay unchanged.
        loss, loss_weights: as `keras.Model.compile` takes them.
        epochs, batches: number of epochs, and of batches per epoch.
        learning_rate: the initial learning rate.
        averaging: momentum of the running average of the weights: metrics on unseen sources vary by
            percentage points between epochs.
        seed: of everything random.
        draw: seed of an epoch -> its batches; runs in its own thread, ahead of the training.
        state: file for the training state, written after each epoch.
        report: called with the fraction done, 0..1, and the loss after each batch; raises to stop.
        watch: its metrics are reported after each epoch, and have no influence on the training.
    """
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, max(batches * epochs, 1))
    optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=averaging)
    network.compile(optimizer=optimizer, loss=loss, loss_weights=loss_weights)
    optimizer.build(network.trainable_variables)
    variables = _state_of(network, optimizer)
    first = _restore(state, variables)
    if first:
        report(first / epochs, {RESUMED: 1.0})
    for epoch in range(first, epochs):
        # Nothing here draws from a global generator, so none is seeded: that would make TensorFlow
        # discard its compiled functions.
        epoch_seed = seed_of(seed, epoch)
        for number, batch in enumerate(_ahead(draw(epoch_seed))):
            results = network.train_on_batch(*batch, return_dict=True)
            network.reset_metrics()  # the loss of this batch, not the mean since the beginning
            report(
                (epoch + (number + 1) / batches) / epochs,
                {"loss": float(results["loss"]), "epoch": epoch + 1},
            )
        if watch is not None:
            report((epoch + 1) / epochs, {**_watched(network, watch), "epoch": epoch + 1})
        _save(state, epoch + 1, variables)
    optimizer.finalize_variable_values(network.trainable_variables)


def _watched(network: keras.Model, watch: Watch) -> dict[str, float]:
    """Return the metrics of the network as if the training ended now, with the running average of
    the weights. Afterwards the network has its own weights again.

    Called before the state is written: a training that is interrupted in between repeats the epoch,
    with the same metrics, as they depend only on the weights.
    """
    variables = network.trainable_variables
    own = [np.asarray(variable).copy() for variable in variables]
    network.optimizer.finalize_variable_values(variables)
    try:
        return watch.figures(network)
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


def seed_of(seed: int, number: int) -> int:
    """Return a seed for the epoch (or fold, or child) of that number, 0 <= s < 2**31."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % 2**31)


def _ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches in order while a thread draws the next ones; its exceptions are raised
    here.
    """
    waiting: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    ended = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not ended.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        except BaseException as err:  # noqa: BLE001 - raised again where the batches are used
            put(err)
        put(None)

    thread = threading.Thread(target=fill, name="draws batches", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        thread.join()


def _state_of(network: keras.Model, optimizer: keras.Optimizer) -> list[keras.Variable]:
    """Return the variables that a training resumes from: those of the layers, to include the state
    of the dropout's random generators and exclude the model's metrics, and those of the optimizer.
    """
    of_layers = (variable for layer in network.layers for variable in layer.variables)
    return [*of_layers, *optimizer.variables]


def _save(state: Path, epochs: int, variables: list[keras.Variable]) -> None:
    """Write the state after that many epochs."""
    values = {f"v{number}": np.asarray(variable) for number, variable in enumerate(variables)}
    save_arrays(state, {"epoch": np.array(epochs)} | values)


def _restore(state: Path, variables: list[keras.Variable]) -> int:
    """Restore the saved state; return the number of completed epochs."""
    saved = load_arrays(state)
    if saved is None:
        return 0
    for number, variable in enumerate(variables):
        variable.assign(saved[f"v{number}"])
    return int(saved["epoch"])
