"""The command that converts a folder of images to shards."""

from rich.console import Console

from optax_sam.train.config import configs, errors


def run(config: configs.ConvertConfig, console: Console) -> int:
  """Converts a folder of images and returns the exit status."""

  def say(text: str) -> None:
    text = errors.printable(text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)

  configs.build(configs.ConvertConfig, vars(config))
  try:
    from optax_sam.train.data import imagenet
  except ModuleNotFoundError as error:
    msg = f"convert needs {error.name}: pip install 'optax-sam[imagenet]'"
    raise ValueError(msg) from None
  try:
    imagenet.convert(
      config.source,
      config.output,
      shards=config.shards,
      threads=config.threads,
      max_pixels=config.max_pixels,
      say=say,
    )
  except KeyboardInterrupt:
    errors.print_error(
      'interrupted; finished shards are complete; run the same command '
      'again to continue'
    )
    return errors.INTERRUPTED
  say(f'Shards: {config.output}')
  return 0
