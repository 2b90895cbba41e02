"""`pulumi-resource-aws`, which the Pulumi engine runs; see `tools/standin/bin/aws/`."""

from modelfleet.infra.provider import main
from tools.standin.aws.provider import AwsStandin

if __name__ == "__main__":
    main(AwsStandin())
