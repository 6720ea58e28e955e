# Sets this machine up as a host: first the timer that shuts it down, then the control plane, the package and the worker.
# The values above are quoted by the control plane; no text of a person is part of this program.
set -u
umask 022
export DEBIAN_FRONTEND=noninteractive
state=/run/tunesmith home=/opt/tunesmith units=/etc/systemd/system
mkdir -p "$state" "$home" /etc/tunesmith

phase() {
  printf '%s\n' "$1" > "$state/phase"
  # cloud-init copies this to the console.
  echo "tunesmith: $1"
}

fail() {
  phase "failed: $1"
  shutdown -h now
  exit 1
}

retry() {
  local tries=$1 pause=$2 i
  shift 2
  for ((i = 0; i < tries; i++)); do
    "$@" && return 0
    sleep "$pause"
  done
  return 1
}

# The dead man's timer. It counts its own ticks, so that no step of the clock can trigger it. The worker creates
# the file `wanted` with each heartbeat that the control plane has accepted. Root only removes a name in the folder
# that the worker's user may write to: it follows no link there.
cat > "$home/dead-man" <<'SCRIPT'
#!/bin/bash
state=/run/tunesmith
. /etc/tunesmith/dead-man.env
mkdir -p "$state"
if rm "$state/renewal/wanted" 2> /dev/null; then
  touch "$state/renewed"
  ticks=0
else
  ticks=$(($(cat "$state/ticks" 2> /dev/null || echo 0) + 1))
fi
echo "$ticks" > "$state/ticks"
limit=$BOOT_MINUTES
[ ! -e "$state/renewed" ] || limit=$LEASE_MINUTES
[ "$ticks" -lt "$limit" ] || exec shutdown -h now
SCRIPT
chmod 755 "$home/dead-man"
printf 'BOOT_MINUTES=%s\nLEASE_MINUTES=%s\n' "$BOOT_MINUTES" "$LEASE_MINUTES" > /etc/tunesmith/dead-man.env
cat > "$units/tunesmith-dead-man.service" <<UNIT
[Unit]
Description=Shut down a machine whose worker has stopped renewing it

[Service]
Type=oneshot
ExecStart=$home/dead-man
UNIT
cat > "$units/tunesmith-dead-man.timer" <<UNIT
[Unit]
Description=Run the check of renewals every minute

[Timer]
OnActiveSec=60
OnUnitActiveSec=60
AccuracySec=1

[Install]
WantedBy=timers.target
UNIT
systemctl daemon-reload
systemctl enable --now tunesmith-dead-man.timer || fail "the dead man's timer does not start"

if [ -n "$TUNNEL_KEY_LINE" ]; then
  user_home=$(getent passwd "$SSH_USER" | cut -d : -f 6)
  [ -n "$user_home" ] || fail "there is no user $SSH_USER"
  install -d -m 700 -o "$SSH_USER" "$user_home/.ssh"
  printf '%s\n' "$TUNNEL_KEY_LINE" >> "$user_home/.ssh/authorized_keys"
  chown "$SSH_USER" "$user_home/.ssh/authorized_keys"
  chmod 600 "$user_home/.ssh/authorized_keys"
  # A tunnel that broke without notice keeps its ports bound, until the server finds its client gone.
  mkdir -p /etc/ssh/sshd_config.d
  printf 'ClientAliveInterval 5\nClientAliveCountMax 3\n' > /etc/ssh/sshd_config.d/60-tunesmith.conf
  systemctl reload ssh || systemctl reload sshd
fi
phase "waiting for the control plane"
id tunesmith > /dev/null 2>&1 || useradd --system --home-dir "$home/data" --create-home --shell /usr/sbin/nologin tunesmith

# Ubuntu has python3 without venv, and on 22.04 one that is too old: uv brings its own then.
prepare_python() {
  apt-get update && apt-get install -y --no-install-recommends python3-venv &&
    python3 -m venv "$home/bootstrap" && "$home/bootstrap/bin/python" -m pip install --quiet uv
}
install_package() {
  "$home/bootstrap/bin/uv" venv --allow-existing --python '>=3.11' "$home/venv" &&
    "$home/bootstrap/bin/uv" pip install --python "$home/venv/bin/python" "$REQUIREMENT"
}
reach_api() {
  python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$URL/healthz" 2> /dev/null
}
# The tunnel is opened from the other side; the dead man's timer ends a wait that lasts too long.
until reach_api; do sleep "$POLL_SECONDS"; done

phase "installing"
export UV_PYTHON_INSTALL_DIR="$home/python" UV_CACHE_DIR="$home/cache"
retry 5 20 prepare_python || fail "Python cannot be installed"
retry 5 20 install_package || fail "the package cannot be installed"

phase "checking the GPUs"
has_cuda() { "$home/venv/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }
# Machines with eight GPUs report error 802 until the manager of their links has started.
retry 20 "$POLL_SECONDS" has_cuda || fail "torch finds no GPU"

phase "joining"
cat > /etc/tunesmith/host.env <<VALUES
TUNESMITH_HOST_ID=$HOST_ID
TUNESMITH_HOST_RENEWAL_FILE=$state/renewal/wanted
VALUES
install -d -m 755 -o tunesmith "$state/renewal"
mkdir -p "$units/tunesmith-worker.service.d"
cat > "$units/tunesmith-worker.service.d/host.conf" <<UNIT
[Unit]
StartLimitIntervalSec=0

[Service]
EnvironmentFile=/etc/tunesmith/host.env
Restart=always
RestartSec=5
TimeoutStopSec=110
# The metadata of the machine contain its user data, and with it the key of the host.
IPAddressDeny=169.254.169.254/32
UNIT
# The key is not an argument, which every process could read.
join() {
  cd / && TUNESMITH_WORKER_KEY="$JOIN_KEY" "$home/venv/bin/python" -m workers join \
    --url "$URL" --name "$HOST_ID" --user tunesmith --data-dir "$home/data"
}
retry 10 30 join || fail "the host cannot join"
systemctl daemon-reload
systemctl enable --now tunesmith-worker.service || fail "the worker does not start"

if [ "$SPOT" = 1 ]; then
  cat > "$units/tunesmith-spot-notice.service" <<UNIT
[Unit]
Description=Stop the worker when the cloud takes the machine back

[Service]
ExecStart=$home/venv/bin/python -m workers.clouds.spot_notice
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
UNIT
  systemctl daemon-reload
  systemctl enable --now tunesmith-spot-notice.service || fail "nothing reads the notice of an interruption"
fi
phase "joined"
