"""`pulumi-resource-aws`: run by the Pulumi engine, see `tools/standin/bin/aws/`."""

from tools.standin.aws.provider import AwsStandin
from tools.standin.base import main

if __name__ == "__main__":
    main(AwsStandin())
