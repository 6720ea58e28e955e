#!/bin/sh
# Create the secrets of docker-compose.yml as files, each unless it exists: sh deploy/create-secrets.sh [FOLDER]
#
# Passwords and keys are random; an empty file is a secret that is not set, into which you write its value. Containers
# read the files as users of their own, so the folder protects them from the other users of this host. Values of an
# earlier .env (POSTGRES_PASSWORD, REDIS_PASSWORD, …) are taken over: remove them there afterwards.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-secrets}
# A failure within an argument of `create` would not end the script, and leave an empty password.
command -v openssl >/dev/null || { echo "openssl is missing, which makes the passwords: install it first." >&2; exit 1; }
mkdir -p "$folder"
chmod 700 "$folder"

from_env() { # Print the value of a variable in .env, if it is there.
    [ ! -f .env ] || sed -n "s/^$1=//p" .env | tail -n 1
}

create() { # NAME VALUE: write the file unless it exists.
    [ ! -e "$folder/$1" ] || return 0
    printf '%s\n' "$2" >"$folder/$1"
    chmod 644 "$folder/$1"
    echo "created $folder/$1${2:+, with a value}"
}

random() { openssl rand -hex "$1"; }

value=$(from_env POSTGRES_PASSWORD); create postgres_password "${value:-$(random 24)}"
value=$(from_env REDIS_PASSWORD); create redis_password "${value:-$(random 24)}"
value=$(from_env TUNESMITH_ENCRYPTION_KEY); create encryption_key "${value:-$(openssl rand -base64 32)}"
create admin_key "ts_$(random 24)"
create grafana_password "$(random 12)"
# The store of the profile `s3`. For another one, write its secret into s3_secret_access_key, or empty the file for the
# role of the machine.
value=$(from_env TUNESMITH_S3_SECRET_ACCESS_KEY); create s3_secret_access_key "${value:-$(random 24)}"
create s3_identities "{\"identities\": [{\"name\": \"tunesmith\", \"credentials\": [{\"accessKey\": \"tunesmith\", \
\"secretKey\": \"$(cat "$folder/s3_secret_access_key")\"}], \"actions\": [\"Admin\", \"Read\", \"Write\", \"List\", \"Tagging\"]}]}"
create evaluation_endpoints "$(from_env TUNESMITH_EVALUATION_ENDPOINTS)"
create openai_api_key "$(from_env TUNESMITH_OPENAI_API_KEY)"
create hf_token "$(from_env HF_TOKEN)"
create mlflow_tracking_password "$(from_env MLFLOW_TRACKING_PASSWORD)"
create mlflow_tracking_token "$(from_env MLFLOW_TRACKING_TOKEN)"
create wandb_api_key "$(from_env WANDB_API_KEY)"
create aws_secret_access_key "$(from_env AWS_SECRET_ACCESS_KEY)"
create lambda_api_key "$(from_env LAMBDA_API_KEY)"
create lambda_ssh_key ""
# docker compose run --rm api keys create --name prometheus --scope read > secrets/metrics_key
create metrics_key ""
