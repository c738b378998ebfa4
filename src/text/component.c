/* Reading the components of tokenizer.json: small checked look-ups. A key that
 * is not known may change what a component does, so it is an error. */
#include <string.h>

#include "text/pipeline.h"

pl_status pl_json_keys(pl_ctx *c, const cJSON *j, const char *where, const char *const *known) {
  if (!cJSON_IsObject(j)) {
    return pl_fail(c, PL_EFORMAT, "%s must be an object", where);
  }
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, j) {
    bool found = false;
    for (const char *const *k = known; *k && !found; k++) {
      found = strcmp(*k, v->string) == 0;
    }
    if (!found && !cJSON_IsNull(v)) {
      return pl_fail(c, PL_EFORMAT, "%s: the option \"%.60s\" is not implemented", where,
                     v->string);
    }
  }
  return PL_OK;
}

pl_status pl_json_bool(pl_ctx *c, const cJSON *j, const char *where, const char *key, bool *out) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
  if (!v || cJSON_IsNull(v)) {
    return PL_OK;
  }
  if (!cJSON_IsBool(v)) {
    return pl_fail(c, PL_EFORMAT, "%s: %s must be true or false", where, key);
  }
  *out = cJSON_IsTrue(v);
  return PL_OK;
}

pl_status pl_json_str(pl_ctx *c, const cJSON *j, const char *where, const char *key,
                      const char **out) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
  if (!v || cJSON_IsNull(v)) {
    return PL_OK;
  }
  if (!cJSON_IsString(v)) {
    return pl_fail(c, PL_EFORMAT, "%s: %s must be a string", where, key);
  }
  *out = v->valuestring;
  return PL_OK;
}

pl_status pl_json_type(pl_ctx *c, const cJSON *j, const char *kind, const char **type) {
  *type = NULL;
  if (!cJSON_IsObject(j)) {
    return pl_fail(c, PL_EFORMAT, "%s must be an object with a type", kind);
  }
  PL_TRY(pl_json_str(c, j, kind, "type", type));
  if (!*type) {
    return pl_fail(c, PL_EFORMAT, "%s has no type", kind);
  }
  return PL_OK;
}

pl_status pl_json_sequence(pl_ctx *c, const cJSON *j, const char *where, const char *key,
                           const cJSON **list) {
  const char *const keys[] = {"type", key, NULL};
  PL_TRY(pl_json_keys(c, j, where, keys));
  *list = cJSON_GetObjectItemCaseSensitive(j, key);
  if (!cJSON_IsArray(*list)) {
    return pl_fail(c, PL_EFORMAT, "%s: %s must be an array", where, key);
  }
  return PL_OK;
}

pl_status pl_json_pattern(pl_ctx *c, const cJSON *j, const char *where, pl_regex **out) {
  const cJSON *p = cJSON_GetObjectItemCaseSensitive(j, "pattern");
  bool one = cJSON_IsObject(p) && p->child && !p->child->next && cJSON_IsString(p->child);
  bool literal = one && strcmp(p->child->string, "String") == 0;
  if (!one || (!literal && strcmp(p->child->string, "Regex") != 0)) {
    return pl_fail(c, PL_EFORMAT, "%s: pattern must be {\"String\": ..} or {\"Regex\": ..}", where);
  }
  pl_status st =
      pl_regex_new(c, p->child->valuestring, strlen(p->child->valuestring), literal, out);
  return st == PL_OK ? st : pl_fail_in(c, st, "%s", where);
}
