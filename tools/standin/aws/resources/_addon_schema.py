"""What EKS refuses in an add-on's configuration. Its own answer is `aws eks describe-addon-configuration`."""

from __future__ import annotations

from modelfleet.infra.provider import Props, Refused


def refuse_configuration(addon: str, configuration: Props) -> None:
    """Raises `Refused` for a value of another type than the add-on's JSON schema has.

    In that of vpc-cni every variable of `env` is text, and so is `enableNetworkPolicy`: `true` without quotes is none.
    """
    if addon != "vpc-cni":
        return
    texts = {"enableNetworkPolicy": configuration.get("enableNetworkPolicy", "false"), **configuration.get("env", {})}
    wrong = [name for name, value in texts.items() if not isinstance(value, str)]
    if texts["enableNetworkPolicy"] not in ("true", "false"):
        wrong.append("enableNetworkPolicy")
    if wrong:
        raise Refused(
            "CreateAddon: InvalidParameterException: ConfigurationValue provided in request is not supported: "
            f"Json schema validation failed with error: {', '.join(sorted(set(wrong)))}: string expected"
        )
