#!/bin/sh
# Puts the database's password where libpq looks for it (`passfile` of the addresses in
# compose.yaml), so that it stands in no environment and in no command line.
set -eu
if [ -r /run/secrets/postgres_password ]; then
    umask 077
    { printf '*:*:*:*:'; tr -d '\n' </run/secrets/postgres_password | sed 's/[\\:]/\\&/g'; } >/tmp/pgpass
    umask 022
fi
exec "$@"
