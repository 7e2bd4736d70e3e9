"""What a log line says of the steps since the one before."""

import json

from jaxdet.training.meter import Meter, progress_line


def test_meter_counts_images_waiting_and_what_is_left() -> None:
    now = [100.0]
    meter = Meter(batch_size=4, clock=lambda: now[0])
    meter.wait(7.0)
    meter.add({"loss": 6.0})
    meter.count({"dropped": 1})  # before start: compiling, no part of the speed
    now[0] += 50
    meter.start()
    for loss in (1.0, 2.0):
        meter.wait(0.5)
        meter.add({"loss": loss})
        meter.count({"dropped": 2})
        now[0] += 2
    assert meter.take(steps_left=10) == {
        "loss": 3.0,
        "dropped": 5,
        "images_per_second": 2.0,
        "data_wait": 0.25,
        "eta_seconds": 20.0,
    }
    assert meter.take(0) == {"dropped": 5}  # of no step there is neither mean nor speed


def test_a_meter_goes_on_where_the_saved_one_was() -> None:
    whole, killed = Meter(4), Meter(4)
    losses = [0.1, 0.2, float("nan"), 1e300]
    for loss in losses:
        whole.add({"loss": loss, "lr": loss / 3})
        whole.count({"dropped": 1})
    for loss in losses[:3]:
        killed.add({"loss": loss, "lr": loss / 3})
        killed.count({"dropped": 1})
    continued = Meter.continued(4, json.loads(json.dumps(killed.saved(), allow_nan=False)))
    continued.add({"loss": losses[3], "lr": losses[3] / 3})
    continued.count({"dropped": 1})
    assert str(continued.take(0)) == str(whole.take(0))
    assert Meter.continued(4, {}) == Meter(4)


def test_progress_line() -> None:
    summary = {"loss": 2.0, "loss/cls": 1.5, "loss/mask": 0.5, "lr": 0.02, "grad_norm": 3.0}
    summary |= {"images_per_second": 12.34, "data_wait": 0.013, "eta_seconds": 3725.0}
    assert progress_line(50, 100, summary) == (
        "step 50/100  loss 2.000 (cls 1.500, mask 0.500)  lr 0.02  12.3 images/s  data 1%  ETA 1:02:05"
    )
