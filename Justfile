# ./justw lists these; ./justw NAME runs one.
set positional-arguments := true

bin := ".venv/bin"

[private]
default:
    @"{{ just_executable() }}" --justfile "{{ justfile() }}" --list --unsorted

# Show the product at work: an agent audits Python's standard library over ten throwaway containers
[no-exit-message]
demo *args:
    @scripts/docker-engine {{ bin }}/python -m harness.demo "$@"

# Run every test; arguments go to pytest: ./justw test tests/unit -k cron
[no-exit-message]
test *args:
    @scripts/test-tools
    @scripts/docker-engine {{ bin }}/pytest "$@"

# Run the tests that need no Docker Engine and no server
[no-exit-message]
unit *args:
    @{{ bin }}/pytest tests/unit "$@"

# Measure runs beside docker run, in half an hour: ./justw bench --quick; ./justw bench --only startup
bench *args: images
    @scripts/docker-engine {{ bin }}/python -m tests.benchmarks "$@"

# Hurt the product for 20 minutes and hold it to its promises: ./justw torture --minutes 5 --seed 7 --store mongo
[no-exit-message]
torture *args: images
    @scripts/docker-engine {{ bin }}/python -m tests.torture "$@"

# Run hostile agents and clients beside a victim, in five minutes: ./justw abuse --only clients; ./justw abuse --write
[no-exit-message]
abuse *args: images
    @scripts/docker-engine {{ bin }}/python -m tests.abuse "$@"

# Feed parsers, configs and a server with what nobody would think of: ./justw fuzz 600 --only cron (frames, resume, config, api)
[no-exit-message]
fuzz *args:
    @scripts/docker-engine {{ bin }}/python -m tests.fuzz "$@"

# Lint, check the format, the types and the list of licences
check:
    {{ bin }}/ruff check
    {{ bin }}/ruff format --check
    {{ bin }}/mypy
    {{ bin }}/python scripts/licenses.py --check

# Hold the locked versions against the vulnerabilities that PyPI knows of; exit code 3: they could not be looked up
[no-exit-message]
audit *args:
    @{{ bin }}/python scripts/audit.py "$@"

# Write a bill of materials (CycloneDX) of what the product runs on: ./justw sbom agent-harness.cdx.json
sbom *args:
    @{{ bin }}/python scripts/sbom.py "$@"

# Write docs/licenses.md, the licences of what the product runs on
licenses:
    @{{ bin }}/python scripts/licenses.py

# Format, and fix what can be fixed safely
format:
    {{ bin }}/ruff format
    {{ bin }}/ruff check --fix

# Build the sandbox images
images:
    @scripts/docker-engine {{ bin }}/harness images build

# Make sure a Docker Engine answers; root on Debian or Ubuntu gets one installed and started where none does
docker-engine:
    @scripts/docker-engine

# Write constraints.txt anew from pyproject.toml; arguments go to uv: ./justw lock --upgrade
lock *args:
    @{{ bin }}/pip install --quiet uv
    @{{ bin }}/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
        --custom-compile-command "./justw lock" --output-file constraints.txt "$@" pyproject.toml
