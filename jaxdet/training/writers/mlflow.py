"""MLflow as a writer."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.training.writers.packages import kept_id, package
from jaxdet.training.writers.writer import Settings

_MOST_PARAMETERS = 100  #: that a server of MLflow takes at once
_LONGEST_VALUE = 6000  #: characters of one


class MLflow:
    """Hands a run to MLflow (a `Writer`; ``pip install 'jaxdet[mlflow]'``).

    The run has the name of its folder, and goes on under the same id, which is kept in ``mlflow_id``.  The config is
    that with which it began.

    Args:
        experiment: where the run goes; it is made if it is not there.
        tracking_uri: address or folder of the server; None: as MLFLOW_TRACKING_URI says, or MLflow's own default.
    """

    def __init__(self, experiment: str = "jaxdet", tracking_uri: str | None = None) -> None:
        self._experiment, self._uri = experiment, tracking_uri
        self._mlflow = package("mlflow")

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        self._client: Any = self._mlflow.MlflowClient(self._uri)
        self._id, begun = kept_id(workdir / "mlflow_id", lambda: self._new_run(workdir.resolve().name))
        if begun:
            self._client.update_run(self._id, status="RUNNING")
            return
        parameters = [self._mlflow.entities.Param(k, str(v)[:_LONGEST_VALUE]) for k, v in settings.items()]
        for begin in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[begin : begin + _MOST_PARAMETERS])

    def _new_run(self, name: str) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        place = found.experiment_id if found else self._client.create_experiment(self._experiment)
        return str(self._client.create_run(place, run_name=name).info.run_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        # MLflow takes no @ in a name, which scores of more than 100 detections have.
        named = [metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=named)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._client.log_image(self._id, pixels, key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)
