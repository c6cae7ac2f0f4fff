"""Names that scripts of diffusers, TRL and VQGAN have for our options; both are taken, in flags and recipes."""

NAMES = {
    "output": "output_dir",
    "dataset_name": "data",
    "train_data_dir": "data",
    "dataset_config_name": "data_config_name",
    "dataset_config": "data_config_name",
    "dataset_train_split": "train_split",
    "dataset_test_split": "validation_split",
    "pretrained_model_name_or_path": "init_from",
    "model_name_or_path": "init_from",
    "train_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "epochs": "num_train_epochs",
    "max_train_steps": "max_steps",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "lr_warmup_steps": "warmup_steps",
    "adam_weight_decay": "weight_decay",
    "ema_decay": "weight_ema_decay",
    "validation_steps": "eval_steps",
    "checkpointing_steps": "save_steps",
    "checkpoints_total_limit": "save_total_limit",
    "num_samples": "num",
    "disc_start": "discriminator_start_step",
    "disc_weight": "adversarial_weight",
    "disc_loss": "adversarial_loss",
    "disc_lr": "discriminator_learning_rate",
}

VALUES = {  # names whose values say what several options are
    "mixed_precision": {"no": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}},
}
