"""Makes keys for the object store of compose.yaml, where there are none: for it and for clients."""

import json
import secrets
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "secrets"
ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]


def main() -> None:
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    credentials = FOLDER / "aws_credentials"
    with credentials.open("x") as file:
        file.write(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    identity = {
        "name": "vsvi",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ACTIONS,
    }
    (FOLDER / "store_keys.json").write_text(json.dumps({"identities": [identity]}, indent=2))


if __name__ == "__main__":
    main()
