"""What remains after something went wrong: a refused request, a program's error, a killed or interrupted run."""

from __future__ import annotations

from typing import Any

from modelfleet.cli.pulumi_lock import clear_dead_locks
from tests.engine.engine import Project
from tests.engine.slow_proxy import SlowProxy
from tests.waiting import wait_until

TWO_BUCKETS = """
options = pulumi.ResourceOptions(provider=local_aws())
first = aws.s3.Bucket("first", bucket="first-bucket", opts=options)
aws.s3.Bucket("second", bucket="second-bucket", opts=pulumi.ResourceOptions.merge(
    options, pulumi.ResourceOptions(depends_on=[first])
))
"""


def test_what_the_stand_in_does_not_do_is_refused_by_name_before_anything_is_made(
    project: Project, emulator: Any
) -> None:
    project.program("""
        options = pulumi.ResourceOptions(provider=local_aws())
        if config.get_bool("queue"):
            aws.sqs.Queue("unknown", opts=options)
        else:
            aws.s3.Bucket("known", bucket="never-made", acl="public-read", opts=options)
    """)
    by_input = project.preview(check=False)
    assert by_input.code != 0
    assert "aws:s3/bucket:Bucket: input 'acl': the stand-in does not do this; install the real" in by_input.text
    project.config["queue"] = "true"
    by_type = project.preview(check=False)
    assert by_type.code != 0
    assert "aws:sqs/queue:Queue: the stand-in does not do this; install the real plugin" in by_type.text
    assert "Traceback" not in by_input.text + by_type.text
    assert "never-made" not in emulator.buckets()


def test_without_an_emulator_endpoint_the_stand_in_refuses_to_work(project: Project) -> None:
    """A stand-in with gaps must never create anything in a real account."""
    project.program("""
        provider = aws.Provider("real", region="us-west-2", access_key="a", secret_key="b",
                                endpoints=[{"s3": "https://s3.us-west-2.amazonaws.com"}])
        aws.s3.Bucket("bucket", bucket="a-real-bucket", opts=pulumi.ResourceOptions(provider=provider))
    """)
    run = project.up(check=False)
    assert run.code != 0
    assert "the aws stand-in connects to this machine only" in run.text


def test_a_failed_create_keeps_what_was_made_and_the_next_up_goes_on(project: Project, emulator: Any) -> None:
    project.program("""
        options = pulumi.ResourceOptions(provider=local_aws())
        aws.s3.Bucket("made", bucket="made-bucket", opts=options)
        status = {"status": "Enabled"}
        aws.s3.BucketVersioning("lost", bucket=config.require("target"), versioning_configuration=status, opts=options)
    """)
    project.config["target"] = "no-such-bucket"
    run = project.up(check=False)
    assert run.code != 0
    assert "PutBucketVersioning: NoSuchBucket: The specified bucket does not exist" in run.text
    assert [resource["id"] for resource in project.resources("aws:s3/bucket:Bucket")] == ["made-bucket"]
    project.config["target"] = "made-bucket"
    assert project.up().changes == {"create": 1, "same": 3}
    project.destroy()
    assert "made-bucket" not in emulator.buckets()


def test_a_secret_is_nowhere_in_plain_text(project: Project, emulator: Any) -> None:
    project.program("""
        options = pulumi.ResourceOptions(provider=local_aws(secret_key=config.require_secret("key")))
        tags = {"owner": config.require_secret("owner"), "plain": "visible-tag"}
        bucket = aws.s3.Bucket("bucket", bucket="secret-bucket", tags=tags, opts=options)
        pulumi.export("tags", bucket.tags)
    """)
    project.set_secret("key", "hidden-key-0815")
    project.set_secret("owner", "hidden-owner-4711")
    run = project.up()
    tags = emulator.client().get_bucket_tagging(Bucket="secret-bucket")["TagSet"]
    assert {"Key": "owner", "Value": "hidden-owner-4711"} in tags, "the service must get the value itself"
    project.up("--refresh")
    for text in (project.everything_on_disk(), str(project.deployment()), run.text):
        assert "hidden-key-0815" not in text
        assert "hidden-owner-4711" not in text
    assert "visible-tag" in project.everything_on_disk(), "only what is secret is encrypted"
    assert project.outputs()["tags"]["owner"] == "hidden-owner-4711"
    project.destroy()


def test_a_program_that_says_its_error_ends_with_that_message_only(project: Project) -> None:
    project.program(
        """
        import sys
        import pulumi

        pulumi.log.error("models/x.yaml:3: model_id: found 7; a model's id is text")
        sys.exit(32)
        """,
        prelude="",
    )
    run = project.up(check=False)
    assert run.code != 0
    assert run.diagnostics("error") == ["models/x.yaml:3: model_id: found 7; a model's id is text"]
    assert "Traceback" not in run.text


def test_a_dynamic_resource_is_made_and_taken_away(project: Project) -> None:
    project.program(
        """
        import pulumi
        from pulumi.dynamic import CreateResult, Resource, ResourceProvider

        class Provider(ResourceProvider):
            def create(self, props):
                return CreateResult("an-id", {**props, "made": True})

        class Thing(Resource):
            def __init__(self, name):
                super().__init__(Provider(), name, {"made": None})

        pulumi.export("made", Thing("thing").made)
        """,
        prelude="",
    )
    project.up()
    assert project.outputs() == {"made": True}
    project.destroy()
    assert project.resources() == []


def test_an_exception_of_the_program_shows_its_traceback_and_fails(project: Project) -> None:
    project.program("raise ValueError('a fault of the program')", prelude="")
    run = project.up(check=False)
    assert run.code != 0
    assert "ValueError: a fault of the program" in run.text


def test_a_killed_up_is_repaired_by_the_next_one(project: Project, emulator: Any) -> None:
    """The bucket was made, but the engine was killed before it knew: the next run takes it over and continues."""
    project.program(TWO_BUCKETS)
    with SlowProxy(emulator.port) as proxy:
        project.config["endpoint"] = proxy.url
        proxy.hold(b"PUT /first-bucket")
        up = project.start("up")
        assert proxy.asked.wait(120), "the engine never asked for the bucket"
        up.kill()
        wait_until(lambda: not project.living_processes(), seconds=20, what="the end of the plugins and the program")
        proxy.release()
        assert project.lock_files(), "a killed run leaves its lock"
        locked = project.up(check=False)
        assert locked.code != 0
        assert "the stack is currently locked" in locked.text
        wait_until(lambda: "first-bucket" in emulator.buckets(), what="the held request")
        assert len(clear_dead_locks(project.environ["PULUMI_BACKEND_URL"])) == 1
        run = project.up()
        assert run.changes["create"] >= 2, "both buckets belong to the stack"
        assert {"first-bucket", "second-bucket"} <= emulator.buckets()
        assert project.up("--refresh").changes == {"same": 4}
        project.destroy()
    assert not {"first-bucket", "second-bucket"} & emulator.buckets()


def test_an_interrupted_up_ends_cleanly_and_leaves_no_lock(project: Project, emulator: Any) -> None:
    project.program(TWO_BUCKETS)
    with SlowProxy(emulator.port) as proxy:
        project.config["endpoint"] = proxy.url
        proxy.hold(b"PUT /first-bucket")
        up = project.start("up")
        assert proxy.asked.wait(120), "the engine never asked for the bucket"
        up.process.send_signal(2)
        proxy.release()
        run = up.finish()
        assert run.code != 0
        assert "Traceback" not in run.text
        assert "KeyboardInterrupt" not in run.text
        assert project.lock_files() == []
        assert "second-bucket" not in emulator.buckets(), "nothing new must begin after the interrupt"
        project.up()
        assert {"first-bucket", "second-bucket"} <= emulator.buckets()
        project.destroy()
