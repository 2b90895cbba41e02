"""An emulated AWS over HTTP that is as strict as AWS where AWS's rules are documented: moto behind a judge.

    python -m tools.cloud --port 5000

Every request is judged as its caller, by that caller's policies (`judge.py`). What moto has no API for is answered
here (`backends/`). `infra/local/emulator.py`, which the wheel contains, stays plain moto.

moto's own enforcement (`moto.core.authorization`, `moto.iam.access_control`) is no base: by its own list of what is
missing it has no conditions in identity policies (an Allow whose condition does not hold denies everything else), no
resource in most services (`*`), no resource policies, and IAM's form of error for every service but S3 and EC2.
"""
