"""Stand-in for the `aws` provider plugin: boto3 against an emulator on loopback, never a real account."""
