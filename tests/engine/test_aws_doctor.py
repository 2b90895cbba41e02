"""`modelfleet doctor` on the emulated AWS: each fault's rule comes first, and goes when the fault is mended."""

from __future__ import annotations

from collections.abc import Iterator

import pulumi
import pytest

from modelfleet.infra.aws.fleet import AwsFleet
from modelfleet.infra.reading.workspace import make_plan
from tests.doctor_faults import Doctor, Fault, healthy, ids, prove, state_of
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.engine.doctor_faults import FAULTS, QUOTAS, SHORTAGE, Live, fill
from tests.engine.mocked_engine import MockedEngine
from tools.cloud import app as cloud

#: pulumi_aws warns about its own old names when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*has been deprecated in favor of.*:DeprecationWarning")

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
CLIENTS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PATH")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> Iterator[Live]:
    """A fleet without the engine: the real program's calls, in this process."""
    root = tmp_path_factory.mktemp("doctor")
    project = FleetProject(root, emulator, root=root)
    image = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/serving:1"
    project.push(image)
    project.files(stack_of(pools=[POOL], kubernetes={"image": image}), {"org--m": model("org/m", "L4")})
    environ = {name: project.environ[name] for name in CLIENTS}
    (root / "code.zip").write_bytes(b"code")
    plan = make_plan(root, "test")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        engine = MockedEngine(REGION)
        engine.run(lambda: AwsFleet("aws", plan, code=pulumi.FileAsset(str(root / "code.zip"))))
    doctor = Doctor(root, "test", environ, state_of(plan))
    made = Live(project, emulator, Account(emulator, REGION), plan, doctor, "modelfleet-test")
    fill(made)
    yield made


def test_a_fleet_as_planned_has_nothing_to_fix(live: Live) -> None:
    assert (QUOTAS, SHORTAGE) == (cloud.QUOTAS, cloud.SHORTAGE), "what the faults switch"
    answer = healthy(live.doctor)
    print(f"a look takes {answer.seconds:.1f} s")
    assert set(answer.unread) == {"kubernetes", "engine"}, "no API server is behind the emulated EKS"


@pytest.mark.parametrize("fault", FAULTS, ids=ids(FAULTS))
def test_its_first_cause_is(fault: Fault, live: Live) -> None:
    prove(fault, live, live.doctor)


def test_who_may_look_at_little_in_aws_learns_what_that_says(live: Live) -> None:
    iam = live.account.iam
    iam.create_user(UserName="colleague")
    key = iam.create_access_key(UserName="colleague")["AccessKey"]
    theirs = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    doctor = Doctor(live.doctor.root, "test", {**live.doctor.environ, **theirs}, live.doctor.state)
    doctor.secrets = (key["SecretAccessKey"], key["AccessKeyId"])
    answer = doctor()
    assert "AccessDenied" in answer.unread["aws"], answer.unread
