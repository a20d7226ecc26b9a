"""The listener under malformed associations: `make fuzz`, short."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fuzz.dimse import attack_listener
from bench.fuzz.tally import Tally
from tests.conftest import app_on, make_user
from tests.webapp.intake.made import dicom_file
from webapp.extensions import db

ASSOCIATIONS, SEED = 40, 8


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns about odd UIDs.
def test_malformed_associations_delay_no_echo_and_leave_nothing(tmp_path: Path) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, MIN_FREE_MB=0)
    make_user(app, "fuzz")
    tally = Tally()
    slices = [dicom_file(PatientID="1", InstanceNumber="1")]
    attack_listener(app, tmp_path, slices, ASSOCIATIONS, SEED, tally)
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
    assert tally.broken == []
    assert tally.associations == ASSOCIATIONS
    assert tally.received_studies
