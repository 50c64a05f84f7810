"""What a run leaves behind, as far as it is passed on."""

from qdrop.config import Config, DataConfig, ModelConfig, ProcessConfig
from qdrop.config_io import config_from_dict
from qdrop.solver.run_folder import portable


def test_settings_that_are_passed_on_hold_nothing_of_the_machine():
    data = DataConfig(path="/data/imagenet", val_limit=7)
    process = ProcessConfig(seed=5, device="cuda:1", threads=32, out="/home/me/run")
    config = Config(model=ModelConfig(path="/weights/net.pth"), data=data, process=process)
    passed_on = config_from_dict(portable(config))
    assert passed_on.process == ProcessConfig(seed=5)
    assert passed_on.model == ModelConfig(path="net.pth")
    assert passed_on.data == DataConfig(path="imagenet", val_limit=7)
    assert passed_on.quant == config.quant
