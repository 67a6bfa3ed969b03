"""Begins or goes on with a run, in this process: `run_once.py CONFIG.json NAME`. To be killed by a test."""

import sys
from pathlib import Path

from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.session import open_session
from workers.evaluator import Evaluator
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps

config = RunConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
directory = RunDirectory(config.deployment.runs_dir, sys.argv[2])


def make_pool(config, corpus):
    return LocalPool({name: Evaluator(config, corpus.train, ReferenceOps()) for name in ("a", "b")})


open_session(config, directory, directory.journal_path.exists(), ReferenceOps(), make_pool).run()
