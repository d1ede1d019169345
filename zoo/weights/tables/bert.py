"""Names of the parameters of published weights of `zoo.models.bert`."""

from zoo.models import bert
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule

# A Hugging Face `config.json`: see `vit.HUGGINGFACE`; its "architectures" specifies the head.
HUGGINGFACE = dict(
  model_types={"bert": {}},
  fields=dict(
    width="hidden_size",
    depth="num_hidden_layers",
    mlp_dim="intermediate_size",
    num_heads="num_attention_heads",
    vocab_size="vocab_size",
    max_length="max_position_embeddings",
    type_vocab_size="type_vocab_size",
    pad_token_id="pad_token_id",
    activation="hidden_act",
    norm_eps="layer_norm_eps",
    dropout_rate="hidden_dropout_prob",
    attention_dropout_rate="attention_probs_dropout_prob",
    init_std="initializer_range",
  ),
  equal={},
  tops={},
  # `num_classes` is the name of the tensor with that many elements.
  architectures={
    "BertForPreTraining": dict(head="pretraining"),
    "BertForMaskedLM": dict(head="masked_lm"),
    "BertForSequenceClassification": dict(head="sequence_classification", num_classes="classifier.bias"),
    "BertForMultipleChoice": dict(head="multiple_choice"),
    "BertForTokenClassification": dict(head="token_classification", num_classes="classifier.bias"),
    "BertForQuestionAnswering": dict(head="question_answering"),
    "BertModel": dict(head="none"),
  },
)


def tables(config: bert.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout: "huggingface", transformers' Bert models."""
  # The encoder alone has no name of its own there.
  bert = r"(?:|bert\.)" if config.head == "none" else r"(?:bert\.|)"
  embeddings, layer = rf"{bert}embeddings", rf"{bert}encoder\.layer\.(\d+)"
  block = "encoder/block_{:02d}"

  def norm(key: str, path: str) -> tuple[Rule, ...]:
    """In the first release they are gamma and beta."""
    names = ((r"(?:weight|gamma)", "scale"), (r"(?:bias|beta)", "bias"))
    return tuple(Rule(rf"{key}\.LayerNorm\.{theirs}", f"{path}/{ours}", torch.AS_IS) for theirs, ours in names)

  tables = dict(word="embed", position="position", token_type="token_type")
  head = "qa_outputs" if config.head == "question_answering" else "classifier"
  return {
    "huggingface": (
      Rule(rf"{embeddings}\.position_ids", (), torch.IGNORED),
      *(
        Rule(rf"{embeddings}\.{theirs}_embeddings\.weight", f"encoder/{ours}/embedding", torch.AS_IS)
        for theirs, ours in tables.items()
      ),
      *norm(embeddings, "encoder/embed_norm"),
      *(
        rule
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"))
        for rule in torch.heads(rf"{layer}\.attention\.self\.{theirs}", f"{block}/attn/{ours}")
      ),
      *torch.heads_out(rf"{layer}\.attention\.output\.dense", f"{block}/attn/out"),
      *norm(rf"{layer}\.attention\.output", f"{block}/norm1"),
      *torch.dense(rf"{layer}\.intermediate\.dense", f"{block}/mlp/up"),
      *torch.dense(rf"{layer}\.output\.dense", f"{block}/mlp/down"),
      *norm(rf"{layer}\.output", f"{block}/norm2"),
      *torch.dense(rf"{bert}pooler\.dense", "pooler"),
      *torch.dense(r"cls\.predictions\.transform\.dense", "masked_lm/transform"),
      *norm(r"cls\.predictions\.transform", "masked_lm/norm"),
      Rule(r"cls\.predictions\.bias", "masked_lm/bias", torch.AS_IS),
      # Files repeat the table of words, and the bias, under these names.
      *(Rule(rf"cls\.predictions\.decoder\.{name}", (), torch.IGNORED) for name in ("weight", "bias")),
      *torch.dense(r"cls\.seq_relationship", "next_sentence"),
      *torch.dense(head, "head"),
    )
  }
