"""`pulumi-resource-aws`: run by the Pulumi engine, see `tools/standin/bin/aws/`."""

from infra.provider import main
from tools.standin.aws.provider import AwsStandin

if __name__ == "__main__":
    main(AwsStandin())
