#!/bin/sh
# Checks that this machine has what `make` needs: Python, venv and a PostgreSQL server with
# PostGIS. What is missing is installed where that is possible (as root, with apt-get);
# anybody else is told what to install. A server for users without root comes later, by
# `vsvi install-postgis`.
#
# Usage: setup/system.sh PYTHON [more Debian packages]
set -eu

python=$1
shift

if ! command -v "$python" >/dev/null; then
    echo "There is no '$python' here. Name another Python: make PYTHON=python3.12" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or later is needed, and '$python' is $("$python" --version 2>&1 | head -n 1)." \
        "Name another one: make PYTHON=python3.12" >&2
    exit 1
fi

has_postgis() {
    for control in \
        /usr/share/postgresql/*/extension/postgis.control \
        /usr/pgsql-*/share/extension/postgis.control \
        /opt/homebrew/share/postgresql@*/extension/postgis.control \
        /usr/local/share/postgresql@*/extension/postgis.control \
        "${CONDA_PREFIX:-/nonexistent}/share/extension/postgis.control"; do
        [ -e "$control" ] && return 0
    done
    # Debian's pg_config by itself only says that developers' packages are missing.
    command -v pg_config >/dev/null &&
        [ -e "$(pg_config --sharedir 2>/dev/null)/extension/postgis.control" ]
}

missing=
for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
# Who names a database of their own needs no server here.
[ -n "${VSVI_POSTGRES_URL:-}" ] || grep -qs '^VSVI_POSTGRES_URL=.' .env || has_postgis ||
    missing="$missing postgresql-postgis"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    case $missing in *python3-venv*) echo "'$python' cannot make virtual environments (module venv)." >&2 ;; esac
    case $missing in *postgis*) echo "No PostgreSQL server with PostGIS is installed: brew install" \
        "postgis, or conda install -c conda-forge postgis." >&2 ;; esac
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    missing=${missing% postgresql-postgis}
    [ -n "$missing" ] || exit 0
    echo "Something is missing. Install it with: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

# Debian's package would make and start a server of the system's own, which nobody here uses.
no_system_server=/etc/postgresql-common/createcluster.d/vsvi.conf
mkdir -p "$(dirname "$no_system_server")"
echo "create_main_cluster = false" >"$no_system_server"
trap 'rm -f "$no_system_server"' EXIT

echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of packages
apt-get install -qq --yes --no-install-recommends $missing
